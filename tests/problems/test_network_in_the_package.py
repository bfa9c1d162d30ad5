"""The rest of the package with network problems: estimates, runs, pictures, conditions."""

from functools import partial

import pytest
import torch
from matplotlib import pyplot
from matplotlib.text import Text
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn import functional as F

import torchlimits as tl
from torchlimits.ensemble import checkpoint


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def classes(dim=400, **given):
    """Three classes, labels flipped now and then by what x is, a head of two layers."""
    head = nn.Sequential(nn.GELU(), nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3))
    arguments = {
        "loss": F.cross_entropy, "labels": torch.tensor([0, 1, 2]), "snr": 2.0, "ridge": 0.05,
        "label_flips": 0.25, "means": 1.0 * torch.eye(3, dim),
    }  # fmt: skip
    return tl.NetworkProblem(dim=dim, width=2, head=head, **{**arguments, **given})


def binary(dim=100, **given):
    """Two means +c and -c, one smooth neuron."""
    c = torch.eye(1, dim)
    arguments = {
        "loss": lambda output, y: F.softplus(-y * output).mean(), "means": torch.cat([c, -c]),
        "labels": torch.tensor([1.0, -1.0]), "snr": 4.0, "bias": False,
    }  # fmt: skip
    return tl.NetworkProblem(dim=dim, width=1, head=nn.Softplus(beta=5), **{**arguments, **given})


def own(dim=100):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(dim, 2), nn.Tanh(), nn.Linear(2, 1))
    problem = tl.NetworkProblem.of(
        model, loss=F.mse_loss, labels=torch.tensor([1.0, -1.0]), label_noise=0.2, snr=4.0,
        means=torch.eye(2, dim), ridge=0.1,
    )  # fmt: skip
    return model, problem


def point(problem, seed=0):
    """Statistics of order 1, unlike those at a start."""
    return problem.dynamics(step_size=1.0).field.geometry.random(1, generator(seed))[0]


def z(found, theory):
    """Deviations from theory in standard errors; 0 where neither has a value."""
    off = found.value - theory
    return torch.where(off == 0, 0, off / found.standard_error)


def rms(x):
    return float(x.square().mean().sqrt())


# --- from data ------------------------------------------------------------------------------------


def test_theory_at_a_point_is_what_data_say_there():
    problem = classes()
    u, dynamics = point(problem), problem.dynamics(step_size=1.0)
    model = problem.model(dtype=torch.float64)
    lifted = tl.Lift(model, problem.statistics)(u)
    with torch.no_grad():
        for name, value in lifted.items():
            model.get_parameter(name).copy_(value)
    found = tl.estimate(
        model, problem.loss, problem.sample, problem.statistics, step_size=1 / problem.dim,
        samples=6000, weight_decay=problem.ridge, generator=generator(),
    )  # fmt: skip
    assert torch.allclose(found.u, u)
    assert found.names == problem.names
    R = slice(-3, None)  # the corrector is of R
    assert rms(z(found.drift, dynamics.drift(u))) < 1.4
    assert rms(z(found.corrector, dynamics.corrector(u))[R]) < 2
    assert float(dynamics.corrector(u)[:-3].abs().max()) == 0
    # what one step adds to the covariance
    spread = found.increment_covariance
    assert rms(z(spread, dynamics.diffusion(u) / problem.dim)) < 1.4
    # negative controls: without flips; a tenth off
    without = classes(label_flips=None).dynamics(step_size=1.0)
    assert rms(z(found.drift, without.drift(u))) > 3
    assert rms(z(found.corrector, 1.1 * dynamics.corrector(u))[R]) > 4
    assert rms(z(spread, 1.2 * dynamics.diffusion(u) / problem.dim)) > 3


def test_empirical_dynamics_have_the_same_right_hand_side():
    problem = binary()
    u = torch.tensor([0.8, 0.6], dtype=torch.float64)
    found = tl.EmpiricalDynamics(
        problem.model(dtype=torch.float64), problem.loss, problem.sample, problem.statistics,
        step_size=1.0, dim=problem.dim, samples=4000,
    )  # fmt: skip
    theory = problem.dynamics(step_size=1.0)(0.0, u[None])[0]
    assert torch.allclose(found(0.0, u[None])[0], theory, atol=0.02)
    assert float(theory.abs().max()) > 0.1


@pytest.mark.slow
def test_conditions_of_the_theorem_are_tested_for_networks():
    def problem_at(n):
        return tl.SizedProblem.of(binary(n), step_size=1.0, generator=generator())

    report = tl.closability(problem_at, [20, 60], samples=200, remainders=3, points=1)
    assert [c.name for c in report.conditions][:3] == [
        "drift, random", "drift, aligned", "drift, run",
    ]  # fmt: skip
    bounds = tl.localizability(problem_at, [20, 40], samples=128, points=1)
    assert bounds["|grad^3 u|"].verdict.startswith("holds")


# --- a loop of one's own --------------------------------------------------------------------------


def test_a_loop_of_ones_own_is_compared_as_it_stands(tmp_path):
    model, problem = own()
    optimizer = torch.optim.SGD(model.parameters(), lr=1 / 100, weight_decay=0.1)
    probe = tl.Probe(problem.loss, problem.sample, every=50, samples=64)
    generated = generator()
    with tl.track(model, optimizer, problem.statistics, probe=probe) as tracker:
        for _ in range(100):
            x, y = problem.sample(1, generator=generated)
            optimizer.zero_grad()
            F.mse_loss(model(x), y).backward()
            optimizer.step()
    measured, explained = tracker.trajectory(), tracker.explanation()
    assert measured.names == problem.names == explained.change.names
    predicted = problem.dynamics(optimizer).solve(measured, band=True)
    off = (measured.values[1:] - predicted.values[1:]) / predicted.std[1:]
    assert rms(off) < 2  # one run, whose statistics move together
    assert rms((measured.values[1:] - measured.initial) / predicted.std[1:]) > 2.5
    told = str(tl.compare(measured, predicted))
    assert "2.weight" in told
    assert "R[0,0]" in told
    figure = tl.figures.overlay(measured, predicted)
    shown = [text.get_text() for text in figure.findobj(Text)]
    assert any("2.weight" in text for text in shown), shown
    pyplot.close(figure)
    facts = {**problem.describe(), "lr": 0.01}
    tl.tensorboard.write(tmp_path, measured=measured, predicted=predicted, hparams=facts)
    events = EventAccumulator(str(tmp_path / "measured")).Reload()
    tags = events.Tags()["scalars"]
    assert {"2.weight/0/1", "m/1/0", "R/0/0"} <= {*tags}


# --- many runs ------------------------------------------------------------------------------------


def test_training_goes_on_from_its_checkpoint(monkeypatch, tmp_path):
    _, problem = own(dim=30)
    options = {"step_size": 1.0, "time": 2.0, "runs": 3, "momentum": 0.5, "progress": False}
    whole = tl.train(problem, **options)
    monkeypatch.setattr(checkpoint, "_SECONDS", -1.0)
    loss, calls = problem.loss, []

    def interrupted(output, target):
        calls.append(1)
        if len(calls) == 25:
            raise KeyboardInterrupt
        return loss(output, target)

    monkeypatch.setattr(problem, "loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tl.train(problem, **options, checkpoint=tmp_path / "c.pt")
    assert (tmp_path / "c.pt").exists()
    found = tl.train(problem, **options, checkpoint=tmp_path / "c.pt")
    assert torch.equal(found.values, whole.values)
    assert 25 < len(calls) < 25 + 60


@pytest.mark.slow
def test_processes_share_the_runs():
    problem = classes(dim=30)
    options = {"step_size": 1.0, "time": 1.0, "runs": 40, "progress": False}
    alone, shared = (tl.train(problem, **options, processes=n) for n in (1, 2))
    assert torch.equal(alone.values, shared.values)


@pytest.mark.slow
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_compiled_steps_of_a_network_are_the_same_to_rounding():
    model, _ = own(dim=30)
    model[2].bias.requires_grad_(False)  # what is frozen stays where it is
    problem = tl.NetworkProblem.of(
        model, loss=F.mse_loss, labels=torch.ones(1), snr=1.0, label_noise=0.1, ridge=0.1
    )
    options = {
        "step_size": 1.0, "time": 1.0, "every": 5, "progress": False, "runs": 3, "momentum": 0.5,
        "batch_size": 2, "dtype": torch.float64, "start": model.double(),
    }  # fmt: skip
    fast, plain = (tl.train(problem, compiled=c, **options) for c in (True, False))
    torch.testing.assert_close(fast.values, plain.values, rtol=1e-10, atol=1e-12)
    assert float((plain.values[:, -1] - plain.initial).abs().max()) > 0.1


# --- where starts go ------------------------------------------------------------------------------


def test_basins_say_to_which_mean_neurons_turn():
    c = torch.eye(1, 200)
    problem = tl.NetworkProblem(
        dim=200, width=2, head=nn.Sequential(nn.ReLU(), nn.Linear(2, 1)), snr=100.0, ridge=0.1,
        loss=F.binary_cross_entropy_with_logits, means=torch.cat([c, -c]),
        labels=torch.tensor([1.0, 0.0]), bias=False,
    )  # fmt: skip
    dynamics = problem.dynamics(step_size=1.0, nodes=2**9)
    u0 = problem.starts(3, generator=generator(1))
    found = tl.basins(dynamics, u0, time=60.0)
    assert found.classes.shape == (3, 2)
    arrived = (found.classes >= 0).all(-1)
    assert bool(arrived.any())
    assert torch.equal(dynamics.classes(found.final, 0.9)[arrived], found.classes[arrived])
    assert bool((dynamics.classes(u0) == -1).all())
    m, R = dynamics.split(u0)[2:]
    lengths = (m.square().sum(-1) + R.diagonal(dim1=-2, dim2=-1)).sqrt()
    assert torch.allclose(dynamics.lengths(u0), lengths)
    # no means, nothing to turn to
    without = tl.NetworkProblem(
        dim=20, width=1, head=nn.Tanh(), loss=F.mse_loss, labels=torch.ones(1), snr=1.0
    )
    with pytest.raises(ValueError, match="means that neurons can turn to"):
        tl.basins(without.dynamics(step_size=1.0, nodes=16), without.starts(1))
    with pytest.raises(TypeError, match=r"tl\.GaussianMixture or tl\.NetworkProblem"):
        tl.basins(tl.SpikedTensor(dim=10, snr=2.0).dynamics(step_size=1.0), torch.ones(2))


@pytest.mark.slow
def test_phase_diagrams_are_of_networks_too():
    def make(snr, ridge, classes):
        c = torch.eye(1, 50)
        return tl.NetworkProblem(
            dim=50, width=1, head=nn.Identity(), bias=False, snr=snr, ridge=ridge,
            loss=F.binary_cross_entropy_with_logits if classes else nn.MSELoss(),
            means=torch.cat([c, -c]), labels=torch.tensor([1.0, 0.0 if classes else -1.0]),
        )  # fmt: skip

    axes = ("snr", [1.0, 4.0]), ("ridge", [0.1])
    found = tl.phase_diagram(partial(make, classes=True), *axes, count=2, flow=5.0)
    assert found.count("stable").tolist() == [[1, 1]]
    # a linear classifier along the mean, with the noise that steps leave in R
    assert 0.6 < found.accuracy[0, 0] < found.accuracy[0, 1] < 1
    axes = ("snr", [1.0]), ("ridge", [0.1])
    options = {"step_size": 0.1, "count": 1, "flow": 0.0}
    numbers = tl.phase_diagram(partial(make, classes=False), *axes, **options)
    assert numbers.count("stable").tolist() == [[1]]
    assert bool(numbers.accuracy.isnan().all())
