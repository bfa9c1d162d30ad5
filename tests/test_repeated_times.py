"""Times that repeat, where a learning rate was 0: predicted, compared, drawn, explained."""

import warnings

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import torchlimits as tl
from torchlimits import figures

#: of a run with a warm-up from 0, a pause and an end at rest
TIMES = torch.tensor([0.0, 0.0, 0.0, 0.5, 0.5, 2.0, 2.0], dtype=torch.float64)
DISTINCT, ROWS = TIMES.unique(return_inverse=True)
SPIKED = tl.SpikedTensor(dim=200, order=2, snr=2.0)
START = torch.tensor([[0.3, 1.0], [0.5, 1.2]], dtype=torch.float64)

SETTINGS = {
    "plain": {"step_size": 1.0},
    "with a schedule": {"step_size": 1.0, "schedule": lambda t: 1 / (1 + t)},
}


@pytest.mark.parametrize("band", [False, True])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_predictions_at_repeated_times(settings, band):
    """Bit for bit those at the distinct times, repeated."""
    dynamics = SPIKED.dynamics(**settings)
    found = dynamics.solve(START, TIMES, band=band)
    once = dynamics.solve(START, DISTINCT, band=band)
    assert torch.equal(found.times, TIMES)
    assert torch.equal(found.values, once.values[:, ROWS])
    assert torch.equal(found.steps, once.steps[ROWS])
    if band:
        assert torch.equal(found.std, once.std[:, ROWS])
        covariance = dynamics.covariance(START, TIMES)
        assert torch.equal(covariance, dynamics.covariance(START, DISTINCT)[:, ROWS])


@pytest.mark.parametrize("band", [False, True])
def test_a_run_that_stands_still_from_start_to_end(band):
    found = SPIKED.dynamics(step_size=1.0).solve(START, [0.0, 0.0, 0.0], band=band)
    assert torch.equal(found.values, START[:, None].expand(2, 3, 2))
    assert not band or bool((found.std == 0).all())


@pytest.mark.parametrize("gap", [5e-324, 1e-300, 1e-18])
def test_times_that_nearly_repeat(gap):
    """Learning rates close to 0, as warm-ups have at first."""
    dynamics = SPIKED.dynamics(step_size=1.0)
    found = dynamics.solve(START, [0.0, gap, 2 * gap, 0.5], band=True)
    once = dynamics.solve(START, [0.0, 0.5], band=True)
    torch.testing.assert_close(found.values[:, -1], once.values[:, -1], rtol=1e-6, atol=0.0)
    torch.testing.assert_close(found.values[:, 1], START)
    torch.testing.assert_close(found.std[:, -1], once.std[:, -1], rtol=1e-3, atol=0.0)


def test_paths_at_repeated_times():
    """Nothing moves where no time passes, and no noise is drawn: the rest are the same paths."""
    limit = SPIKED.dynamics(step_size=1.0).langevin()
    found, once = (
        limit.solve(START, times, paths=5, generator=torch.Generator().manual_seed(0))
        for times in (TIMES, DISTINCT)
    )
    assert torch.equal(found.values, once.values[..., ROWS, :])
    assert torch.equal(found.times, TIMES)


def test_covariances_at_repeated_times():
    dynamics = tl.SpikedTensor(dim=100, order=2, snr=0.5).dynamics(step_size=1.0)
    limit = dynamics.diffusive(at=torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert torch.equal(limit.covariance(TIMES), limit.covariance(DISTINCT)[ROWS])


def measured(times, **options):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(len(times), 2, generator=generator, dtype=torch.float64)
    return tl.Trajectory(times, torch.arange(len(times)), values, ["m", "r2"], **options)


def test_a_comparison_counts_rows_after_time_has_passed():
    """Before, the band has no width; the largest difference is looked for in all rows."""
    ours = measured(TIMES)
    std = (TIMES > 0).double()[:, None].expand(-1, 2)
    theirs = tl.Trajectory(TIMES, ours.steps, ours.values, ["m", "r2"], std=std)
    found = tl.compare(ours, theirs)
    assert found.inside.tolist() == [1.0, 1.0]
    shift = torch.zeros(7, 2, dtype=torch.float64)
    shift[4, 0], shift[2, 1], shift[6, 1] = 3.0, 0.5, 0.25
    apart = tl.Trajectory(TIMES, ours.steps, ours.values + shift, ["m", "r2"])
    found = tl.compare(apart, theirs)
    torch.testing.assert_close(found.inside, torch.tensor([0.75, 1.0]).double())
    torch.testing.assert_close(found.sup_difference, torch.tensor([3.0, 0.5]).double())
    assert found.sup_time.tolist() == [0.5, 0.0]
    still = measured(torch.zeros(3))
    assert tl.compare(still, tl.Trajectory(
        still.times, still.steps, still.values, still.names, std=torch.zeros(3, 2)
    )).inside is None  # fmt: skip


def test_a_long_stand_does_not_take_the_points_of_a_figure():
    """10,000 rows of a warm-up at 0 lie upon each other; the curve keeps its dots."""
    times = torch.cat([torch.zeros(10_000), torch.linspace(0, 1, 101)])
    path = measured(times.double())
    (axes, *_) = figures.overlay(path, path, max_points=40).axes
    line, dots = axes.lines
    assert len(dots.get_xdata()) == 40
    assert (dots.get_xdata() > 0).sum() >= 38
    assert len(line.get_xdata()) == 102
    assert line.get_ydata()[[0, 1, -1]].tolist() == path["m"][[0, 10_000, -1]].tolist()
    still = measured(torch.zeros(50))
    assert figures.overlay(still).axes[0].lines[0].get_ydata().tolist() == (
        still["m"][[0, -1]].tolist()
    )
    band = measured(TIMES, std=torch.ones(7, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.png(figures.overlay(path, path))
        figures.png(figures.overlay(still, still))
        figures.png(band.plot("m").figure)


def scalars(folder, tag):
    rows = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload().Scalars(tag)
    return [r.step for r in rows], [r.value for r in rows], [r.wall_time for r in rows]


def test_both_sides_have_the_measured_steps_in_tensorboard(tmp_path):
    """A step is not what the time tells, where time stood still; the relative axis is the time."""
    ours = measured(TIMES)
    theirs = SPIKED.dynamics(step_size=1.0).solve(START[0], TIMES)
    assert theirs.steps.tolist() != ours.steps.tolist()
    tl.tensorboard.write(tmp_path, measured=ours, predicted=theirs)
    for side, path in (("measured", ours), ("predicted", theirs)):
        steps, values, walls = scalars(tmp_path / side, "m")
        assert steps == list(range(7))
        assert values == pytest.approx(path["m"].tolist())
        hours = [(wall - walls[0]) / 3600 for wall in walls]
        assert hours == pytest.approx(TIMES.tolist(), abs=1e-5)
    other = SPIKED.dynamics(step_size=1.0).solve(START[0], [0.0, 1.0])
    tl.tensorboard.write(tmp_path, measured=ours, predicted=other)
    assert scalars(tmp_path / "predicted", "m")[0] == other.steps.tolist() == [0, 200]


@pytest.mark.parametrize("warm_up", [0, 3])
def test_an_explanation_of_a_run_with_a_warm_up_from_nothing(warm_up):
    """Parts add up to the change, whose start is known although nothing moved there."""
    problem = tl.SpikedTensor(dim=50, order=2, snr=2.0)
    model = problem.model(at=(0.5, 1.0), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0 if warm_up else 0.02)
    probe = tl.Probe(problem.loss, problem.sample, every=1, samples=16)
    tracker = tl.track(model, optimizer, problem.statistics, probe=probe)
    assert tracker.explanation().change.final.tolist() == [0.0, 0.0]
    generator = torch.Generator().manual_seed(1)
    for step in range(warm_up + 4):
        optimizer.param_groups[0]["lr"] = 0.0 if step < warm_up else 0.02
        optimizer.zero_grad()
        x, y = problem.sample(1, generator=generator)
        problem.loss(model(x), y).backward()
        optimizer.step()
    found = tracker.explanation()
    path = tracker.trajectory()
    torch.testing.assert_close(found.change.final, path.final - path.initial, rtol=1e-5, atol=1e-6)
    parts = found.drift.final + found.corrector.final + found.residual.final
    torch.testing.assert_close(parts, found.change.final)
    assert bool(found.residual.std.isfinite().all())
    assert float(found.change.times[-1]) == pytest.approx(0.08)


def test_theory_has_the_clock_of_the_recorder():
    """The first group that is trained; a frozen layer in front of it does not move."""
    problem = tl.GaussianMixture.binary(dim=30, snr=2.0)
    model = problem.model(generator=torch.Generator().manual_seed(0))
    first, second = list(model.first.parameters()), list(model.second.parameters())

    def optimizer(*groups):
        return torch.optim.SGD([{"params": p, "lr": lr} for p, lr in groups], lr=1.0)

    u = problem.statistics(dict(model.named_parameters())).detach()
    by_rate = optimizer((first, 0.0), (second, 0.1))
    behind = optimizer((second, 0.1), (first, 0.0))
    times = [0.0, 0.0, 1.0]
    found = problem.dynamics(by_rate).solve(u, times)
    assert torch.equal(found.values, problem.dynamics(behind).solve(u, times).values)
    assert torch.equal(found.steps, torch.tensor([0, 0, 10]))
    for p in first:
        p.requires_grad_(False)
    by_gradient = optimizer((first, 0.3), (second, 0.1))
    tracker = tl.track(model, by_gradient, problem.statistics)
    x, y = problem.sample(1)
    problem.loss(model(x), y).backward()
    by_gradient.step()
    assert tracker.time == 0.1
    again = problem.dynamics(by_gradient).solve(u, times)
    assert torch.equal(found.values, again.values)
    halved = torch.optim.lr_scheduler.StepLR(by_gradient, 10, gamma=0.5)
    schedule = problem.dynamics(by_gradient, schedule=halved).schedule
    assert schedule(0.5) == pytest.approx(30 * 0.1)
