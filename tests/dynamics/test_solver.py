import pytest
import torch
import torchdiffeq
from scipy.integrate import solve_ivp

import torchlimits as tl
from torchlimits.dynamics import effort, solver

TIMES = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64)


class Forced:
    """dx/dt = -r (x - sin t) + cos t for (x, r), solved by x = sin t + x(0) e^{-r t}; it counts."""

    def __init__(self):
        self.evaluated = 0

    def __call__(self, t, u):
        self.evaluated += len(u)
        x, rate = u.unbind(-1)
        return torch.stack([-rate * (x - t.sin()) + t.cos(), torch.zeros_like(x)], dim=-1)

    @staticmethod
    def exact(u0):
        x, rate = u0[:, None].unbind(-1)
        return TIMES.sin() + x * torch.exp(-rate * TIMES)


def starts(count, stiff):
    u0 = torch.ones(count, 2, dtype=torch.float64)
    u0[stiff, 1] = 1000.0
    return u0


def cost(u0):
    forced = Forced()
    values = solver.integrate(forced, u0, TIMES, 1e-6, 1e-8)
    # the tolerance is for a step; errors of steps add up
    assert float((values[..., 0] - forced.exact(u0)).abs().max()) < 2e-5
    return forced.evaluated


@pytest.mark.parametrize(
    "stiff", [[17], pytest.param([3, 99, 100, 101, 640], marks=pytest.mark.slow)]
)
def test_the_others_do_not_wait_for_stiff_starts(stiff):
    u0 = starts(1000, stiff)
    easy = cost(starts(1000 - len(stiff), []))
    hard = cost(starts(len(stiff), list(range(len(stiff)))))
    # what was begun in vain: at most a thousand evaluations of every group with a stiff start
    groups = {row // 500 for row in stiff}
    ours = cost(u0)
    assert ours < 2 * (easy + hard) + len(groups) * 501 * 1000
    # without groups everyone is evaluated as often as the stiffest
    forced = Forced()
    torchdiffeq.odeint(forced, u0, TIMES, rtol=1e-6, atol=1e-8, method="dopri5")
    assert ours < forced.evaluated / 3


def test_all_starts_may_be_stiff():
    alone = cost(starts(1, [0]))
    assert cost(starts(40, list(range(40)))) < 40 * (alone + 1001)


def test_a_start_that_blows_up_is_named():
    u0 = torch.full((300, 1), 0.01, dtype=torch.float64)
    u0[123] = 1.0
    with pytest.raises(RuntimeError, match="from start 123 of 300"):
        solver.integrate(lambda t, u: u**2, u0, TIMES, 1e-6, 1e-8)


def test_shapes():
    single = solver.integrate(lambda t, u: -u, torch.ones(2), TIMES, 1e-6, 1e-8)
    assert single.shape == (3, 2)
    grid = solver.integrate(lambda t, u: -u, torch.ones(4, 5, 2), TIMES, 1e-6, 1e-8)
    assert torch.allclose(grid, single.expand(4, 5, 3, 2))
    none = solver.integrate(lambda t, u: -u, torch.ones(0, 2), TIMES, 1e-6, 1e-8)
    assert none.shape == (0, 3, 2)
    assert solver.integrate(lambda t, u: -u, torch.ones(2), TIMES[:1], 1e-6, 1e-8).shape == (1, 2)


def test_a_start_does_not_depend_on_the_others_and_agrees_with_scipy(monkeypatch):
    monkeypatch.setattr(solver, "GROUP", 16)
    problem = tl.GaussianMixture.binary(dim=1000, snr=100.0, ridge=0.1)
    dynamics = problem.dynamics(step_size=1.0, level=-1)
    model = problem.model(replicas=(40,), generator=torch.Generator().manual_seed(2))
    u0 = problem.statistics(dict(model.named_parameters())).detach().double()
    times = [0.0, 2.0, 8.0]
    many = dynamics.solve(u0, times).values
    for row in (0, 39):
        reference = solve_ivp(
            lambda t, u: dynamics(t, torch.from_numpy(u)).numpy(),
            (0.0, 8.0), u0[row].numpy(), t_eval=times, rtol=1e-8, atol=1e-10,
        )  # fmt: skip
        expected = torch.from_numpy(reference.y.T)
        # leaving the saddle multiplies errors of the start by e^{rate t}, some 1e2
        assert float((many[row] - expected).abs().max()) < 1e-4
        alone = dynamics.solve(u0[row], times).values
        assert float((alone - expected).abs().max()) < 1e-4


def test_threads_change_nothing():
    u0 = torch.linspace(0.1, 2.0, 1000, dtype=torch.float64)[:, None]
    before = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(solver.integrate(lambda t, u: -(u**3), u0, TIMES, 1e-6, 1e-8))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


def test_another_default_device_changes_nothing(monkeypatch):
    monkeypatch.setattr(solver, "_PATIENCE", 50)
    u0 = starts(8, stiff=[3])
    expected = solver.integrate(Forced(), u0, TIMES, 1e-6, 1e-8)
    with torch.device("meta"):
        found = solver.integrate(Forced(), u0, TIMES, 1e-6, 1e-8)
    assert torch.equal(found, expected)


def decaying(t, u):
    return -u


FAR = torch.tensor([0.0, 1.0, 1e6], dtype=torch.float64)


def test_a_system_at_rest_ends_and_an_explicit_method_says_how_far_it_came():
    u0 = torch.tensor([[1.0, 2.0], [0.5, 0.0]], dtype=torch.float64)
    values = solver.integrate(decaying, u0, FAR, 1e-6, 1e-8)
    assert torch.allclose(values[:, 1], u0 * torch.e**-1, rtol=1e-5)
    assert float(values[:, 2].abs().max()) < 1e-7
    match = r"from start \d of 2: after 4,000 evaluations it was at t=\d+.*Try method='BDF'"
    with pytest.raises(RuntimeError, match=match):
        solver.integrate(decaying, u0, FAR, 1e-6, 1e-8, "dopri5")


def test_the_implicit_method_holds_the_tolerance_between_its_steps():
    times = torch.linspace(0, 2, 41, dtype=torch.float64)
    u0 = torch.tensor([[1.0, 1e3], [1.0, 1e4], [2.0, 1e6]], dtype=torch.float64)
    forced = Forced()
    values = solver.integrate(forced, u0, times, 1e-6, 1e-8, "BDF")[..., 0]
    exact = times.sin() + u0[:, :1] * torch.exp(-u0[:, 1:] * times)
    assert float((values - exact).abs().max()) < 2e-6
    assert forced.evaluated < 3 * 1000  # an explicit method takes millions for the last


def test_what_never_ends_is_given_up(monkeypatch):
    """An oscillator, whose steps no method may make long."""
    monkeypatch.setattr(effort, "LIMIT", 3000)

    def turning(t, u):
        return torch.stack([u[..., 1], -u[..., 0]], -1)

    with pytest.raises(RuntimeError, match=r"gave up.*after 3,000 evaluations, the most it takes"):
        solver.integrate(turning, torch.ones(2), FAR, 1e-6, 1e-8)
    assert solver.integrate(turning, torch.ones(2), TIMES, 1e-6, 1e-8).shape == (3, 2)


@pytest.mark.slow
@pytest.mark.parametrize("order", [2, 3])
def test_huge_starts_and_long_times_end_where_they_should(order):
    dynamics = tl.SpikedTensor(dim=100, order=order, snr=30.0).dynamics(step_size=1.0)
    expected = torch.tensor([dynamics.m_star(), 1.0], dtype=torch.float64)
    for u0, time in (([1e6, 1.0], 1.0), ([dynamics.m_star() + 0.1, 1.0], 1e6)):
        final = dynamics.solve(torch.tensor(u0, dtype=torch.float64), [0.0, time]).final
        assert torch.allclose(final, expected, rtol=1e-6)


def test_no_starts_have_no_solutions():
    dynamics = tl.SpikedTensor(dim=100, order=2, snr=2.0).dynamics(step_size=1.0)
    for shape in ((0, 2), (3, 0, 2)):
        path = dynamics.solve(torch.zeros(shape), [0.0, 1.0], band=True)
        assert path.values.shape == path.std.shape == (*shape[:-1], 2, 2)
        assert path.runs == 0
        assert "runs=0" in path._repr_html_()
    network = tl.GaussianMixture.binary(dim=100, width=2, snr=2.0)
    assert network.dynamics(step_size=1.0).solve(torch.zeros(0, 7), [0.0, 1.0]).final.shape == (
        0,
        7,
    )
    # starts of size 0 stay where they are
    still = network.dynamics(step_size=1.0).solve(torch.zeros(7), [0.0, 5.0]).final
    assert torch.equal(still, torch.zeros(7, dtype=torch.float64))


@pytest.mark.parametrize(
    "problem",
    [
        tl.SpikedTensor(dim=60, order=2, snr=2.0),
        tl.GaussianMixture.xor(dim=60, width=4, snr=4.0),
        tl.TeacherStudent(dim=60, width=2, teacher_width=1),
        tl.NetworkProblem(
            dim=60, width=2, head=torch.nn.Linear(2, 1), loss=torch.nn.functional.mse_loss,
            means=torch.eye(2, 60), labels=torch.tensor([1.0, -1.0]), snr=4.0,
        ),
    ],
    ids=lambda problem: type(problem).__name__,
)  # fmt: skip
def test_no_points_have_no_rates(problem):
    dynamics = problem.dynamics(step_size=1.0)
    k = len(dynamics.names)
    none = torch.zeros(2, 0, k)
    assert dynamics.drift(none).shape == dynamics.corrector(none).shape == (2, 0, k)
    assert dynamics.diffusion(none).shape == (2, 0, k, k)
    assert dynamics.jacobian(none[0]).shape == (0, k, k)


def test_unknown_methods_are_refused():
    dynamics = tl.SpikedTensor(dim=100, order=2, snr=2.0).dynamics(step_size=1.0)
    with pytest.raises(ValueError, match="expected method as one of auto, dopri5, BDF, got"):
        dynamics.solve(torch.ones(2), [0.0, 1.0], method="euler")
