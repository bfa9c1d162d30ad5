"""Gradients through solutions, against central differences; what has none is refused."""

import json
import pickle

import pytest
import torch
from torch import nn

import torchlimits as tl
from torchlimits.dynamics import effort, solver

KNOTS = 5


def spiked(x):
    """From 3 starts, with momentum and ridge."""
    problem = tl.SpikedTensor(dim=1000, order=2, snr=x[0], ridge=x[1])
    return problem.dynamics(step_size=x[2], momentum=x[3]), x[4:].expand(3, 2)


def mixture(x):
    problem = tl.GaussianMixture.binary(dim=1000, width=1, snr=x[0], ridge=x[1])
    return problem.dynamics(step_size=x[2], momentum=x[3]), x[4:]


def small_noise(x):
    problem = tl.GaussianMixture.binary(dim=1000, width=1, snr=torch.inf, ridge=x[0])
    return problem.dynamics(step_size=1.0), x[1:]


def network(x):
    torch.manual_seed(0)
    problem = tl.NetworkProblem(
        dim=100, width=2, head=nn.Sequential(nn.Tanh(), nn.Linear(2, 1)), snr=x[0], ridge=x[1],
        loss=nn.functional.mse_loss, means=torch.eye(2, 100), labels=torch.tensor([1.0, -1.0]),
    )  # fmt: skip
    start = problem.starts(1, generator=torch.Generator().manual_seed(1))[0]
    return problem.dynamics(step_size=x[2], momentum=x[3], nodes=2**6), start + x[4]


def teacher_student(x):
    problem = tl.TeacherStudent(dim=100, width=2, teacher_width=1, ridge=x[0])
    u0 = torch.tensor([0.1, 0.0, 0.5, 0.0, 0.5], dtype=torch.float64)
    return problem.dynamics(step_size=x[1], momentum=x[2]), torch.cat([x[3:], u0])


def layers(x):
    """The biases do not move, so that each parameter has its own settings."""
    torch.manual_seed(0)
    head = nn.Sequential(nn.Tanh(), nn.Linear(2, 1))
    problem = tl.NetworkProblem(
        dim=100, width=2, head=head, loss=nn.functional.mse_loss, snr=2.0, bias=True, ridge=x[0],
        means=torch.eye(1, 100), labels=torch.tensor([1.0]),
    )  # fmt: skip
    problem.template.first.bias.requires_grad_(False)
    start = problem.starts(1, generator=torch.Generator().manual_seed(1))[0].round(decimals=1)
    return problem.dynamics(step_size=x[1], momentum=x[2], nodes=2**6), start


def scheduled(x):
    """c is linear between 5 knots."""

    def schedule(t):
        place = 10 * t * (KNOTS - 1)
        left = min(int(place), KNOTS - 2)
        return torch.lerp(x[left], x[left + 1], place - left)

    dynamics = tl.SpikedTensor(dim=1000, order=3, snr=3.0).dynamics(step_size=1, schedule=schedule)
    return dynamics, torch.tensor([0.8, 0.5], dtype=torch.float64)


CASES = {
    spiked: [2.0, 0.1, 1.0, 0.3, 0.2, 0.9],
    mixture: [2.0, 0.1, 1.0, 0.3, 0.7, 0.3, 0.8],
    small_noise: [0.1, 0.7, 0.3, 0.8],
    network: [2.0, 0.1, 1.0, 0.3, 0.1],
    teacher_student: [0.1, 1.0, 0.3, 0.4, 0.9],
    layers: [0.1, 1.0, 0.3],
    scheduled: [1.0, 0.8, 0.6, 0.4, 0.3],
}


def final(make, x):
    dynamics, u0 = make(x)
    solution = dynamics.solve(u0, [0.0, 0.025, 0.05, 0.075, 0.1], rtol=1e-9, atol=1e-11).final
    return solution @ torch.linspace(1, 2, solution.shape[-1], dtype=torch.float64)


@pytest.mark.parametrize(
    "make",
    [pytest.param(make, marks=[pytest.mark.slow] * (make is layers)) for make in CASES],
    ids=lambda make: make.__name__,
)
def test_gradients_are_those_of_central_differences(make):
    x = torch.tensor(CASES[make], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(final(make, x).sum(), x)
    # along one random direction: a wrong component shows, at the cost of two solutions
    e = torch.randn(len(x), dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 1e4
    # with graphs, too, so that steps end at corners
    expected = float((final(make, x + e) - final(make, x - e)).detach().sum()) / 2
    assert float(slope @ e) == pytest.approx(expected, rel=1e-5)
    assert float(slope.abs().min()) > 0


@pytest.mark.slow
def test_the_overlap_grows_with_the_step_size_as_differences_say():
    """The figure that a user looks at first: 1e-5 of itself, for c and for each of 5 knots."""

    def overlap(c, knots):
        def schedule(t):
            left = min(int(t * 10), 3)
            return c * torch.lerp(knots[left], knots[left + 1], t * 10 - left)

        problem = tl.SpikedTensor(dim=1000, order=2, snr=2.0)
        path = problem.dynamics(step_size=1.0, schedule=schedule).solve(
            torch.tensor([0.1, 1.0]), [0.0, 0.1, 0.2, 0.3, 0.4], rtol=1e-10, atol=1e-12
        )
        return path["m"][-1]

    c = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    knots = torch.linspace(1.2, 0.6, KNOTS, dtype=torch.float64).requires_grad_()
    by_c, by_knots = torch.autograd.grad(overlap(c, knots), [c, knots])
    h = 1e-3

    def difference(up, down):
        return float(overlap(*up).detach() - overlap(*down).detach()) / (2 * h)

    assert by_c == pytest.approx(difference((c + h, knots), (c - h, knots)), rel=1e-5)
    for e, slope in zip(h * torch.eye(KNOTS, dtype=torch.float64), by_knots, strict=True):
        assert slope == pytest.approx(difference((c, knots + e), (c, knots - e)), rel=1e-5)


def test_many_starts_have_their_own_gradients(monkeypatch):
    """Groups are solved one after the other, and divided if some starts are stiff."""
    monkeypatch.setattr(solver, "GROUP", 3)
    monkeypatch.setattr(solver, "_PATIENCE", 60)
    dynamics = tl.SpikedTensor(dim=100, order=2, snr=2.0).dynamics(step_size=1.0)
    starts = torch.tensor([[0.1, 1.0], [30.0, 1.0], [0.3, 0.5], [0.2, 2.0]], dtype=torch.float64)
    u0 = starts.clone().requires_grad_()
    (slopes,) = torch.autograd.grad(dynamics.solve(u0, [0.0, 0.3])["m"][:, -1].sum(), u0)
    for start, slope in zip(starts, slopes, strict=True):
        alone = start.clone().requires_grad_()
        (own,) = torch.autograd.grad(dynamics.solve(alone, [0.0, 0.3])["m"][-1], alone)
        assert torch.allclose(slope, own, rtol=1e-4, atol=1e-7)


def kinked():
    """A ReLU behind another layer: where it switches depends on the head's parameters."""
    head = nn.Sequential(nn.Tanh(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    return tl.NetworkProblem(
        dim=100, width=2, head=head, loss=nn.functional.mse_loss, means=torch.eye(2, 100),
        labels=torch.tensor([1.0, -1.0]), snr=2.0,
    )  # fmt: skip


def test_what_has_no_known_gradient_is_refused(monkeypatch):
    monkeypatch.setattr(effort, "_BETWEEN", 100)
    monkeypatch.setattr(effort, "_FIRST", 200)
    c = torch.tensor(1.0, requires_grad=True)
    problem = kinked()
    u0 = problem.starts(1)[0]
    for dynamics, start in (
        (problem.dynamics(step_size=c, nodes=64), u0),
        (problem.dynamics(step_size=1.0, nodes=64), u0.clone().requires_grad_()),
    ):
        with pytest.raises(NotImplementedError, match="which are not known"):
            dynamics.solve(start, [0.0, 0.1])
        with torch.no_grad():
            assert not dynamics.solve(start, [0.0, 0.1]).values.requires_grad
    point = u0.clone().requires_grad_()
    rates = problem.dynamics(step_size=1.0, nodes=64)(0.0, point)
    with pytest.raises(NotImplementedError, match="which are not known"):
        rates.sum().backward()
    spiked = tl.SpikedTensor(dim=100, order=2, snr=2.0).dynamics(step_size=c)
    with pytest.raises(NotImplementedError, match="no gradient of a band"):
        spiked.solve(torch.ones(2), [0.0, 1.0], band=True)
    with pytest.raises(NotImplementedError, match="no gradient of a band"):
        spiked.covariance(torch.ones(2), [0.0, 1.0])
    with pytest.raises(NotImplementedError, match="implicit steps of scipy have none"):
        spiked.solve(torch.ones(2), [0.0, 1.0], method="BDF")
    with pytest.raises(RuntimeError, match="Gradients go through explicit steps alone"):
        spiked.solve(torch.tensor([0.5, 1.0]), [0.0, 1e6])


class Detached(tl.VectorField):
    """What somebody writes who computes in numpy."""

    def terms(self, u):
        return -u.detach(), torch.zeros_like(u)


def test_terms_without_a_graph_are_refused():
    dynamics = tl.EffectiveDynamics(Detached(["r"], dim=10), step_size=1.0)
    with pytest.raises(NotImplementedError, match="terms of Detached that keep the graph of u"):
        dynamics.solve(torch.ones(1, requires_grad=True), [0.0, 1.0])


def test_numbers_that_no_gradient_flows_through_are_refused():
    x = torch.tensor(1.0, requires_grad=True)
    with pytest.raises(TypeError, match="expected noise as a number, got a tensor that requires"):
        tl.TeacherStudent(dim=100, width=2, teacher_width=2, noise=x)
    with pytest.raises(NotImplementedError, match="expected snr as a number where labels read"):
        tl.NetworkProblem(
            dim=100, width=1, head=nn.Tanh(), loss=nn.functional.mse_loss, snr=x,
            directions=torch.eye(1, 100), labels=lambda x, a: x[:, 0],
        )  # fmt: skip
    problem = tl.SpikedTensor(dim=100, order=2, snr=2.0, ridge=x)
    optimizer = torch.optim.SGD(problem.model().parameters(), lr=0.01, weight_decay=1.0)
    with pytest.raises(ValueError, match="expected ridge as a number beside an optimizer"):
        problem.dynamics(optimizer)
    with pytest.raises(ValueError, match=r"expected step_size of shape \(\)"):
        problem.dynamics(step_size=torch.ones(2, requires_grad=True).expand(1, 2))


def test_files_tables_and_pictures_show_the_values(tmp_path):
    c = torch.tensor(1.0, requires_grad=True)
    problem = tl.SpikedTensor(dim=100, order=2, snr=torch.tensor(2.0, requires_grad=True))
    dynamics = problem.dynamics(step_size=c)
    path = dynamics.solve(torch.ones(2), [0.0, 0.5, 1.0])
    assert path.values.requires_grad
    assert path.select("m").slice(slice(1, None)).thin(2).values.requires_grad
    plain = path.detach()
    assert not plain.values.requires_grad
    path.save(tmp_path / "u.npz")
    for copy in (tl.Trajectory.load(tmp_path / "u.npz"), pickle.loads(pickle.dumps(path))):
        assert torch.equal(copy.values, plain.values)
        assert not copy.values.requires_grad
    assert path.to_pandas().equals(plain.to_pandas())
    assert path._repr_html_() == plain._repr_html_()
    assert path.plot("m").lines
    assert tl.figures.overlay(path, path).axes
    tl.tensorboard.write(tmp_path / "log", measured=plain, predicted=path)
    assert float(tl.compare(plain, path).sup_difference.max()) == 0
    assert json.loads(json.dumps(dynamics.describe()))["snr"] == 2.0
    # data and runs are drawn, and have none
    assert problem.snr == 2.0
    assert not problem.loss(torch.ones(100), problem.sample(1)[1]).requires_grad
    run = problem.reduced_chain(step_size=c).run(torch.ones(2), 5)
    assert not run.values.requires_grad
    copied = pickle.loads(pickle.dumps(problem)).dynamics(step_size=1.0)
    assert not copied(0.0, torch.ones(2)).requires_grad
