"""`tl.train` with an optimizer of the user's choice."""

import signal

import pytest
import torch
from torch import nn

import torchlimits as tl
from torchlimits.ensemble.checkpoint import Checkpoint

DIM = 60


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1 / DIM, weight_decay=0.1, betas=(0.9, 0.99))


def network(dim=DIM):
    return tl.NetworkProblem(
        dim=dim, width=2, head=nn.Sequential(nn.Tanh(), nn.Linear(2, 1)),
        loss=nn.functional.mse_loss, means=torch.eye(2, dim), labels=torch.tensor([1.0, -1.0]),
        snr=4.0, dtype=torch.float64,
    )  # fmt: skip


def test_each_run_is_that_of_the_optimizer_alone():
    """Run 1 of three, step by step: its own data, start and optimizer state."""
    problem = network()
    runs = tl.train(problem, optimizer=adamw, time=0.5, runs=3, every=1, progress=False,
                    dtype=torch.float64)  # fmt: skip
    assert runs.metadata["parameters"]["optimizer"].startswith("AdamW")
    assert runs.metadata["parameters"]["step_size"] == pytest.approx(1.0)
    assert float(runs.times[-1]) == pytest.approx(0.5)
    again = tl.train(problem, optimizer=adamw, time=0.5, runs=2, every=1, progress=False,
                     dtype=torch.float64)  # fmt: skip
    assert torch.equal(again.values, runs.values[:2])
    sgd = tl.train(problem, step_size=1.0, time=0.5, runs=2, every=1, progress=False,
                   dtype=torch.float64)  # fmt: skip
    assert torch.equal(sgd.values[:, 0], again.values[:, 0])
    assert not torch.allclose(sgd.values[:, -1], again.values[:, -1], atol=1e-2)
    # a first step of AdamW has the size of the learning rate in every entry of the head
    decayed = runs.values[:, 0, :2] * (1 - 0.1 / DIM)
    assert torch.allclose((runs.values[:, 1, :2] - decayed).abs(), torch.tensor(1 / DIM).double())


def test_sgd_made_by_the_user_is_sgd():
    problem = network()

    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=2 / DIM, momentum=0.5)

    options = {"time": 1.0, "runs": 2, "progress": False}
    own = tl.train(problem, optimizer=sgd, **options)
    ours = tl.train(problem, step_size=2.0, momentum=0.5, **options)
    assert torch.allclose(own.values, ours.values, atol=1e-4)


def test_second_moments_are_recorded_and_predicted():
    problem = network()
    one = problem.model()
    optimizer = torch.optim.Adam(one.parameters(), lr=1 / DIM)
    dynamics = problem.dynamics(optimizer)
    runs = tl.train(
        problem, optimizer=lambda p: torch.optim.Adam(p, lr=1 / DIM), time=0.5, runs=2,
        start=one, statistics=dynamics.statistics, progress=False,
    )  # fmt: skip
    assert runs.names == dynamics.names
    predicted = dynamics.solve(runs)
    assert predicted.values.shape == runs.values.shape
    assert torch.allclose(runs["bias_correction2"], predicted["bias_correction2"], atol=1e-6)
    assert float(runs["first.weight.exp_avg_sq"][:, -1].min()) > 0


def test_an_interrupted_training_goes_on(tmp_path, monkeypatch):
    problem, file = network(), tmp_path / "checkpoint"
    options = {"time": 1.0, "runs": 2, "every": 1, "progress": False}
    whole = tl.train(problem, optimizer=adamw, **options)
    steps, between = iter(range(30)), Checkpoint.between_steps

    def interrupted(self):
        if next(steps, None) is None:
            signal.raise_signal(signal.SIGINT)
        between(self)

    with monkeypatch.context() as patch:
        # a job in the background ignores it
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        patch.setattr(Checkpoint, "between_steps", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tl.train(problem, optimizer=adamw, checkpoint=file, **options)
        signal.signal(signal.SIGINT, before)
    assert file.exists()
    again = tl.train(problem, optimizer=adamw, checkpoint=file, **options)
    assert torch.equal(again.values, whole.values)


def test_what_is_refused():
    problem = network()
    options = {"time": 1.0, "progress": False}
    with pytest.raises(ValueError, match="either step_size=c_delta, for SGD, or optimizer="):
        tl.train(problem, **options)
    with pytest.raises(ValueError, match="either step_size=c_delta, for SGD, or optimizer="):
        tl.train(problem, step_size=1.0, optimizer=adamw, **options)
    with pytest.raises(ValueError, match="momentum in the optimizer itself"):
        tl.train(problem, optimizer=adamw, momentum=0.5, **options)
    with pytest.raises(TypeError, match=r"a function of parameters.*got AdamW"):
        tl.train(problem, optimizer=adamw(problem.model().parameters()), **options)
    with pytest.raises(TypeError, match="make a torch optimizer, got list"):
        tl.train(problem, optimizer=list, **options)
    with pytest.raises(ValueError, match="got LBFGS, which may couple them"):
        tl.train(problem, optimizer=lambda p: torch.optim.LBFGS(p), **options)
    with pytest.raises(ValueError, match="hold all the parameters that it is given, got 1 of"):
        tl.train(problem, optimizer=lambda p: torch.optim.SGD([p[0]], lr=0.1), **options)
    with pytest.raises(ValueError, match="expected device='cpu' with optimizer=, got meta"):
        tl.train(problem, optimizer=adamw, device="meta", **options)
