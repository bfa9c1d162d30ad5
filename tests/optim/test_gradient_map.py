"""Signs and clipped gradients: the maps themselves, and what chooses them."""

import pytest
import torch

import torchlimits as tl
from torchlimits.optim.gradient_map import BatchGradient, ClipNorm, ClipValue, Sign

HEAD = torch.nn.Sequential(torch.nn.Tanh(), torch.nn.Linear(2, 1))


def network(means=None, **options):
    means = torch.eye(2, 60) if means is None else means
    return tl.NetworkProblem(
        dim=60, width=2, head=HEAD, loss=torch.nn.functional.mse_loss, means=means,
        labels=torch.tensor([1.0, -1.0]), snr=4.0, **options,
    )  # fmt: skip


def brute(f, first, second, rho):
    """E f(first X) f(second Y) of normals with a correlation, on a fine grid."""
    x = torch.linspace(-8, 8, 8001, dtype=torch.float64)
    y = torch.linspace(-8, 8, 401, dtype=torch.float64)
    p, q = (torch.exp(-(grid**2) / 2) for grid in (x, y))
    p, q = p / p.sum(), q / q.sum()
    inner = f(second * (rho * x[:, None] + (1 - rho**2) ** 0.5 * y)) @ q
    return float((p * f(first * x) * inner).sum())


@pytest.mark.parametrize("spread", [0.05, 0.3, 3.0])
@pytest.mark.parametrize("rho", [-0.9, 0.2, 0.8, 1.0])
def test_pairs_of_clipped_normals(spread, rho):
    clip = ClipValue(0.3)
    s = torch.tensor([[spread, 0.25]], dtype=torch.float64)
    correlations = torch.tensor([[[1, rho], [rho, 1]]], dtype=torch.float64)
    found = clip.pair(s, correlations)[0]
    assert torch.equal(found, found.mT)
    assert float(found[0, 1]) == pytest.approx(brute(clip.image, spread, 0.25, rho), abs=2e-5)
    assert float(found[0, 0]) == pytest.approx(brute(clip.image, spread, spread, 1.0), abs=2e-5)
    # without clipping it would be the covariance
    assert abs(float(found[0, 0]) - spread**2) > 1e-3 or spread < 0.1
    slope = (clip.image(torch.linspace(-8, 8, 10**6 + 1).double() * spread)).diff()
    density = torch.distributions.Normal(0, 1).log_prob(torch.linspace(-8, 8, 10**6)).exp()
    assert float(clip.slope(s)[0, 0]) == pytest.approx(
        float((slope * density).sum()) / spread, 1e-3
    )


def test_signs_of_a_neuron_that_no_sample_reaches():
    S = torch.tensor([[[4.0, 0.0, -4.0], [0.0, 0.0, 0.0], [-4.0, 0.0, 4.0]]])
    gradient = BatchGradient(torch.tensor([[-3.0]]), torch.zeros(1, 3), torch.zeros(1, 3, 0), S,
                             torch.ones(1))  # fmt: skip
    image = Sign()(gradient)
    assert image.pair[0].tolist() == [[1.0, 0.0, -1.0], [0.0, 0.0, 0.0], [-1.0, 0.0, 1.0]]
    assert image.slope[0].tolist() == pytest.approx([(2 / torch.pi) ** 0.5 / 2, 0.0, 0.3989422804])
    assert image.theta.tolist() == [[-1.0]]


def test_the_norm_of_each_batch_is_clipped():
    S = torch.eye(2).expand(2, 2, 2) * torch.tensor([1.0, 100.0])[:, None, None]
    gradient = BatchGradient(torch.ones(2, 1), torch.ones(2, 2), torch.zeros(2, 2, 0), S,
                             torch.tensor([2.0, 200.0]))  # fmt: skip
    image = ClipNorm(20.0, dim=100)(gradient)
    factor = 20 / 20000**0.5
    assert image.slope[0].tolist() == [1.0, 1.0]
    assert image.slope[1].tolist() == pytest.approx([factor, factor])
    assert float(image.pair[1, 0, 0]) == pytest.approx(100 * factor**2)
    assert image.theta[:, 0].tolist() == pytest.approx([1.0, factor])


def test_sign_sgd_steps_by_signs():
    weight = torch.nn.Parameter(torch.tensor([[1.0, -2.0, 0.0]]))
    other = torch.nn.Parameter(weight.detach().clone())
    options = {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.01}
    ours, theirs = tl.SignSGD([weight], **options), torch.optim.SGD([other], **options)
    for _ in range(3):
        for p in (weight, other):
            p.grad = torch.tensor([[3.0, -1e-9, 0.0]])
        gradient = weight.grad
        ours.step()
        assert weight.grad is gradient
        other.grad.sign_()
        theirs.step()
        assert torch.equal(weight, other)


def test_clipped_gradients_have_the_same_signs():
    """Clipping before signs are taken changes nothing, in torch and in the prediction."""
    problem = network()
    sign = tl.SignSGD(problem.model().parameters(), lr=1 / 60)
    u = problem.starts(1, generator=torch.Generator().manual_seed(0))[0]
    plain = problem.dynamics(sign).drift(u)
    for options in (
        {"clip_norm": 0.1},
        {"clip_value": 0.01},
        {"clip_norm": 2.0, "clip_value": 1.0},
    ):
        assert torch.equal(problem.dynamics(sign, **options).drift(u), plain)
    with pytest.raises(ValueError, match="expected clip_value to be a finite number > 0, got 0"):
        problem.dynamics(sign, clip_value=0.0)


def test_what_is_refused():
    problem = network()
    model = problem.model()
    sgd = torch.optim.SGD(model.parameters(), lr=1 / 60)
    sign = tl.SignSGD(model.parameters(), lr=1 / 60)
    adam = torch.optim.Adam(model.parameters(), lr=1 / 60)
    with pytest.raises(ValueError, match="expected one of clip_norm= and clip_value="):
        problem.dynamics(sgd, clip_norm=1.0, clip_value=1.0)
    with pytest.raises(ValueError, match="expected clip_norm to be a finite number > 0, got -1"):
        problem.dynamics(sgd, clip_norm=-1.0)
    with pytest.raises(ValueError, match="expected one of clip_norm= and clip_value="):
        problem.dynamics(adam, clip_norm=1.0, clip_value=1.0)
    with pytest.raises(NotImplementedError, match="no exact chain is known for steps"):
        problem.dynamics(adam, clip_norm=1.0).reduced_chain()
    with pytest.raises(NotImplementedError, match=r"no exact chain .*'sign'"):
        problem.reduced_chain(sign)
    with pytest.raises(NotImplementedError, match="each entry of a gradient leaves the span"):
        problem.dynamics(sgd, clip_value=1.0).reduced_chain()
    with pytest.raises(NotImplementedError, match="for Langevin dynamics and laws"):
        problem.dynamics(sgd, clip_value=1.0).solve(problem.starts(1)[0], [0.0, 1.0], band="law")
    tilted = torch.zeros(1, 60)
    tilted[0, :2] = 0.5**0.5
    one = tl.NetworkProblem(
        dim=60, width=2, head=HEAD, loss=torch.nn.functional.mse_loss, means=tilted,
        labels=torch.tensor([1.0]), snr=4.0,
    )  # fmt: skip
    sign_of_one = tl.SignSGD(one.model().parameters(), lr=1 / 60)
    with pytest.raises(ValueError, match=r"coordinate 0 with leverage 0\.5"):
        one.dynamics(sign_of_one)
    spiked = tl.SpikedTensor(dim=60, order=2, snr=2.0)
    with pytest.raises(TypeError, match=r"expected torch.optim.SGD .* got SignSGD"):
        spiked.dynamics(tl.SignSGD(spiked.model().parameters(), lr=1 / 60))
    student = tl.TeacherStudent(dim=60, width=2, teacher_width=1, convention="sqrt")
    with pytest.raises(ValueError, match="convention='torch'"):
        student.dynamics(tl.SignSGD(student.model().parameters(), lr=1 / 60))


def test_derivatives_are_refused():
    problem = network()
    dynamics = problem.dynamics(tl.SignSGD(problem.model().parameters(), lr=1 / 60))
    u0 = problem.starts(1)[0].requires_grad_()
    with pytest.raises(NotImplementedError, match="no derivatives of the dynamics of mapped"):
        dynamics.solve(u0, [0.0, 0.1])
    assert dynamics.solve(u0.detach(), [0.0, 0.1]).metadata["parameters"]["gradient"] == "sign"
