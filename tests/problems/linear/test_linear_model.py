"""`LinearModel`: data, model, statistics, one step of the real optimizer, what is refused."""

import copy
import pickle

import pytest
import torch
from real_sgd import one_step
from torch import nn

import torchlimits as tl

PAIRS = [(4.0, 0.1), (1.0, 0.4), (0.25, 0.5)]
ERRORS = [0.6, 0.3, 0.8]
DIM = 200
#: |z| of one of some 50 comparisons
Z = 4.0


def make(dim=DIM, **given):
    return tl.LinearModel(dim, covariance=PAIRS, noise=0.7, errors=ERRORS, **given)


def a_matrix(dim):
    turned = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64)).Q
    values = torch.tensor([3.0, 1.0, 0.5], dtype=torch.float64).repeat_interleave(dim // 3)
    return turned @ torch.diag(values) @ turned.T, turned, values


def test_it_is_a_problem_whose_parts_fit():
    problem: tl.Problem = make()
    assert isinstance(problem, tl.Problem)
    model = problem.model()
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert len(layers) == 1
    assert layers[0].bias is None
    assert not layers[0].weight.any()
    x, y = problem.sample(5)
    assert x.shape == (5, DIM)
    assert model(x).shape == y.shape == (5,)
    assert problem.loss(model(x), y).item() == pytest.approx(float(y.square().mean()) / 2)
    assert problem.names == ["D[0]", "D[1]", "D[2]"] == problem.dynamics(step_size=1.0).names
    assert problem.statistics.names_of(dict(model.named_parameters())) == problem.names
    assert problem.initial.tolist() == ERRORS
    u = problem.statistics(dict(model.named_parameters()))
    assert torch.allclose(u.double(), problem.initial)
    stacked = problem.model(replicas=(2, 3))
    x, y = problem.sample(5, replicas=(2, 3))
    assert stacked(x).shape == y.shape == (2, 3, 5)
    assert problem.statistics(dict(stacked.named_parameters())).shape == (2, 3, 3)
    assert problem.loss(stacked(x), y).item() == pytest.approx(
        3 * float(y.square().mean()), rel=1e-5
    )
    for other in (copy.deepcopy(problem), pickle.loads(pickle.dumps(problem))):
        assert torch.equal(other.target, problem.target)
        assert other.names == problem.names
    assert problem.describe()["dim"] == DIM
    assert "3 levels" in repr(problem)


def test_the_target_is_as_asked_for():
    assert tl.LinearModel(8, noise=0.0).target.norm() == pytest.approx(1)
    default = tl.LinearModel(DIM, covariance=PAIRS, noise=0.0)
    assert torch.allclose(default.initial, torch.tensor([0.1, 0.4, 0.5], dtype=torch.float64))
    matrix, turned, _ = a_matrix(12)
    target = torch.randn(12, dtype=torch.float64)
    problem = tl.LinearModel(12, covariance=matrix, noise=0.0, target=target)
    squares = (turned.T @ target).square().unflatten(0, (3, 4)).sum(1)
    assert torch.allclose(problem.initial, squares)
    spread = tl.LinearModel(12, covariance=matrix, noise=0.0, errors=[1.0, 2.0, 3.0])
    squares = (turned.T @ spread.target).square().unflatten(0, (3, 4)).sum(1)
    assert torch.allclose(squares, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    # of any weights, and of those in float32
    model = problem.model()
    model.first.weight.data.normal_()
    u = problem.statistics(dict(model.named_parameters()))
    w = model.first.weight.detach().double()[0]
    expected = (turned.T @ (w - target)).square().unflatten(0, (3, 4)).sum(1)
    assert torch.allclose(u.double(), expected, rtol=1e-5)


def test_data_have_the_covariance_and_the_noise():
    matrix, _, _ = a_matrix(6)
    target = torch.randn(6, dtype=torch.float64)
    problem = tl.LinearModel(6, covariance=matrix, noise=0.5, target=target)
    count = 40_000
    x, y = problem.sample(count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    error = ((matrix.diag()[:, None] * matrix.diag() + matrix**2) / count).sqrt()
    assert bool(((x.T.cov() - matrix).abs() < Z * error).all())
    rest = y - x @ target
    assert float(rest.square().mean()) == pytest.approx(0.25, rel=Z * (2 / count) ** 0.5)
    # negative control: the eigenvalues alone
    assert bool(((x.T.cov() - matrix.diag().diag()).abs() > Z * error).any())


@pytest.mark.parametrize("batch", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_one_step_of_torch_sgd_has_the_drift_and_the_diffusion(batch):
    """Means and covariances of increments, up to the O(1/N_l) that |x_l|^2 fluctuates by."""
    dim, c, samples = 1000, 1.2, 12_000
    problem = make(dim, dtype=torch.float64)
    model = problem.model()
    noise = torch.randn(1, dim, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    model.first.weight.data.copy_(problem.target + 0.03 * noise)
    u = problem.statistics({n: p.detach() for n, p in model.named_parameters()})
    moved = one_step(
        problem, model, lambda m: torch.optim.SGD(m.parameters(), lr=c / dim),
        samples=samples, batch=batch,
    )  # fmt: skip
    dynamics = problem.dynamics(step_size=c, batch_size=batch)
    error = moved.std(0) / samples**0.5
    assert bool(((moved.mean(0) - dynamics.forward(0.0, u)).abs() < Z * error).all())
    centred = (moved - moved.mean(0)) * c**0.5  # n delta Cov
    products = centred[:, :, None] * centred[:, None, :]
    found, error = products.mean(0), products.std(0) / samples**0.5
    size = found.diag().sqrt().outer(found.diag().sqrt())
    assert bool(((found - dynamics.diffusion(u)).abs() < Z * error + 0.02 * size).all())
    # negative controls: no corrector, and increments to first order alone
    assert bool(((moved.mean(0) - dynamics.drift(u)).abs() > 2 * Z * error.diag()).any())
    first = c / batch * dynamics.field.increment_covariance(u, 0.0)
    assert bool(((found - first).abs() > Z * error + 0.02 * size).any())


def test_the_optimizer_is_read():
    problem = make()
    model = problem.model()
    sgd = torch.optim.SGD(model.parameters(), lr=0.5 / DIM, momentum=0.5, nesterov=True)
    read = problem.dynamics(sgd, batch_size=2)
    given = problem.dynamics(step_size=0.5, momentum=0.5, batch_size=2)
    assert torch.allclose(read.forward(0.0, problem.initial), given.forward(0.0, problem.initial))
    up = torch.optim.SGD(model.parameters(), lr=0.5 / DIM, maximize=True)
    assert torch.equal(
        problem.dynamics(up).drift(problem.initial), -problem.dynamics(step_size=0.5).drift(
            problem.initial
        )
    )  # fmt: skip
    decaying = torch.optim.SGD(model.parameters(), lr=0.5 / DIM, weight_decay=0.1)
    with pytest.raises(ValueError, match=r"expected weight_decay 0 for a linear model, got 0\.1"):
        problem.dynamics(decaying)
    with pytest.raises(TypeError, match="got Adam"):
        problem.dynamics(torch.optim.Adam(model.parameters(), lr=1e-3))
    with pytest.raises(ValueError, match="got NormalizedSGD"):
        problem.dynamics(tl.NormalizedSGD(model.parameters(), lr=1e-3))
    with pytest.raises(ValueError, match="either an optimizer or step_size"):
        problem.dynamics()


def test_large_learning_rates_are_warned_of_and_refused():
    problem = tl.LinearModel(100, covariance=[(50.0, 0.01), (0.1, 0.99)], noise=0.1)
    with pytest.warns(UserWarning, match=r"well below 1, got 0\.1"):
        problem.dynamics(step_size=0.2)
    with pytest.raises(ValueError, match=r"below 0\.5 for the limit .* got 1:"):
        problem.dynamics(step_size=1.0, momentum=0.5)


def test_fourth_moments_of_gaussian_inputs_change_nothing():
    """E[x_i^2 x_m^2] = lambda_i lambda_m + 2 lambda_i^2 if i = m."""
    usual = make(dim=20)
    values = usual.covariance.eigenvalues[0]
    pairs = torch.outer(values, values) + 2 * torch.diag(values**2)
    measured = tl.LinearModel(
        20, covariance=PAIRS, noise=0.7, errors=ERRORS, fourth_moments=(pairs, 0.49 * values)
    )
    assert torch.allclose(measured.gains.matrix, usual.gains.matrix, rtol=1e-12)
    assert torch.allclose(measured.gains.noise, usual.gains.noise, rtol=1e-12)
    assert measured.critical_step_size == pytest.approx(usual.critical_step_size, rel=1e-12)
    assert measured.plateau(0.3) == pytest.approx(usual.plateau(0.3), rel=1e-12)


def test_measured_fourth_moments_predict_runs_on_other_data():
    """Inputs r z with random lengths r, E r^2 = 1 and E r^4 = 1.9; Gaussian moments fail."""
    dim, c, runs, steps = 120, 3.0, 400, 300
    values = 1 / torch.arange(1, dim + 1, dtype=torch.float64).sqrt()
    heavy = 1.9
    squares = heavy * (torch.outer(values, values) + 2 * torch.diag(values**2))
    given = {"covariance": values, "noise": 0.4}
    gaussian = tl.LinearModel(dim, **given)
    problem = tl.LinearModel(dim, **given, fourth_moments=(squares, 0.16 * values))
    high, low = 1 + (heavy - 1) ** 0.5, 1 - (heavy - 1) ** 0.5  # r^2, each with probability 1/2
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    w, target = torch.zeros(runs, dim, dtype=torch.float64), problem.target
    for _ in range(steps):
        coin = torch.randint(0, 2, (runs, 1), generator=generator).double()
        x = normal(runs, dim) * values.sqrt() * (low + (high - low) * coin).sqrt()
        rest = (w * x).sum(1) - x @ target - 0.4 * normal(runs)
        w = w - c / dim * rest[:, None] * x
    risks = problem.risk((w - target).square())
    mean, error = float(risks.mean()), float(risks.std()) / runs**0.5
    assert error < 0.01 * mean

    def predicted(of):
        return float(
            of.risk(of.dynamics(step_size=c).solve(of.initial, [0, steps * c / dim]).final)
        )

    assert abs(predicted(problem) - mean) < 3 * error
    assert abs(predicted(gaussian) - mean) > 10 * error
    with pytest.raises(NotImplementedError, match="expected Gaussian inputs for the reduced"):
        problem.reduced_chain(step_size=c)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"noise": -1.0}, "expected noise to be a finite number >= 0, got -1.0"),
        ({"noise": float("nan")}, "expected noise to be a finite number >= 0"),
        ({"dim": 0}, "expected dim to be an int >= 1"),
        ({"errors": [1.0, 2.0]}, r"expected errors of shape \(3,\), one for each distinct eigenv"),
        ({"errors": [1.0, 2.0, -0.1]}, "expected finite errors >= 0"),
        ({"errors": [1.0, 2.0, float("inf")]}, "expected finite errors >= 0"),
        (
            {"target": torch.ones(3)},
            r"expected target as a finite vector of shape \(200,\), got sh",
        ),
        ({"target": torch.full((DIM,), torch.nan)}, "got not finite"),
        ({"errors": ERRORS, "target": torch.ones(DIM)}, "expected either errors=.* got both"),
        ({"covariance": torch.ones(7)}, "expected covariance as"),
        ({"covariance": torch.ones(2, DIM) + torch.arange(2)[:, None]}, "expected one covariance"),
        ({"fourth_moments": True}, "expected fourth_moments as False or a pair"),
        ({"fourth_moments": (torch.ones(3, 3), torch.ones(3))}, r"got shapes \(3, 3\)"),
        ({"fourth_moments": (-torch.ones(DIM, DIM), torch.ones(DIM))}, "negative or not finite"),
        ({"fourth_moments": (torch.ones(DIM, DIM).triu(), torch.ones(DIM))}, "not symmetric"),
    ],
)
def test_what_is_no_problem_is_refused(given, message):
    whole = {"dim": DIM, "covariance": PAIRS, "noise": 0.7, **given}
    with pytest.raises(ValueError, match=message):
        tl.LinearModel(**whole)


def test_types_and_shapes_are_refused():
    with pytest.raises(TypeError, match="expected fourth_moments as a pair"):
        make(fourth_moments=3.0)
    problem = make()
    model = problem.model()
    x, y = problem.sample(4)
    with pytest.raises(ValueError, match=r"squeeze the output of an nn\.Linear"):
        problem.loss(model(x)[:, None], y)
    with pytest.raises(ValueError, match="expected D >= 0"):
        problem.dynamics(step_size=0.5).solve(-problem.initial, [0.0, 1.0])
    for wrong in (0, 1.5):
        with pytest.raises(ValueError, match="expected steps to be an int"):
            problem.optimal_step_size(wrong)
    for call in (problem.stability_limit, lambda **k: problem.plateau(0.1, **k)):
        with pytest.raises(ValueError, match="expected batch_size"):
            call(batch_size=0)
        with pytest.raises(ValueError, match="expected momentum in"):
            call(momentum=1.0)
