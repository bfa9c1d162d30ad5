"""Steps by a problem's kernel: which are recorded, and what is trained without one."""

from contextlib import closing

import pytest
import torch

import torchlimits as tl
from torchlimits.contracts.kernel import BrokenKernelError, NoKernelError
from torchlimits.ensemble.launches import advanced, kernel_for


class Counting:
    """Adds 1 to a weight at every step, several at once."""

    def __init__(self, weight):
        self.weight, self.launches = weight.detach(), []

    def advance(self, steps):
        self.launches.append(steps)
        self.weight.add_(steps)


@pytest.mark.parametrize(
    ("every", "launches"), [(1, [1] * 30), (7, [7] * 5), (100, [64]), (64, [64])]
)
def test_records_are_those_after_so_many_steps(every, launches):
    model = torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    kernel = Counting(model.weight)
    statistics = {"w": tl.statistics.entries("weight")}
    tracker = tl.track(model, optimizer, statistics, every=every)
    with tracker, closing(advanced(kernel, tracker)) as steps:
        for _ in zip(range(30), steps, strict=False):
            pass
    found = tracker.trajectory()
    assert found.steps.tolist() == list(range(0, 31, every))
    assert found["w[0,0]"].tolist() == found.steps.tolist()
    assert kernel.launches == launches


def test_more_steps_than_one_launch_takes_are_recorded_after_all_of_them():
    model = torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(model.weight)
    kernel = Counting(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    statistics = {"w": tl.statistics.entries("weight")}
    tracker = tl.track(model, optimizer, statistics, every=100)
    with tracker, closing(advanced(kernel, tracker)) as steps:
        for _ in zip(range(250), steps, strict=False):
            pass
    assert tracker.trajectory()["w[0,0]"].tolist() == [0, 100, 200]
    assert kernel.launches == [64, 36, 64, 36, 64]


class OwnLoss(tl.GaussianMixture):
    def loss(self, output, target):
        return 2 * super().loss(output, target)


def chosen(problem, **options):
    model = problem.model(replicas=(3,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, **options)
    return problem.kernel(model, optimizer, batch_size=1, seed=0)


def test_a_loss_of_ones_own_is_not_ignored():
    mixture = tl.GaussianMixture.xor(20, 4, snr=2.0)
    with pytest.raises(NoKernelError, match=r"own model, data and loss.*\['loss'\]"):
        chosen(OwnLoss(mixture.means, mixture.labels, width=4, snr=2.0))
    mixture.sample = lambda *_, **__: None
    with pytest.raises(NoKernelError, match=r"\['sample'\]"):
        chosen(mixture)


@pytest.mark.parametrize("options", [{"momentum": 0.5, "nesterov": True}, {"maximize": True}])
def test_options_that_the_kernel_lacks_are_refused(options):
    pytest.importorskip("triton")
    with pytest.raises(NoKernelError, match="without nesterov, dampening and maximize"):
        chosen(tl.GaussianMixture.xor(20, 4, snr=2.0), **options)


class OnCUDA:
    """A model of which only the device is asked for."""

    def parameters(self):
        yield type("Parameter", (), {"device": torch.device("cuda")})()


class Broken:
    def kernel(self, model, optimizer, *, batch_size, seed):
        return self

    def advance(self, steps):
        raise OSError("no C compiler\nat all")


def test_a_kernel_that_cannot_be_compiled_says_why():
    options = {"optimizer": None, "batch_size": 1, "seed": 0}
    with pytest.raises(BrokenKernelError, match=r"got OSError: no C compiler$"):
        kernel_for(Broken(), OnCUDA(), **options)
    with pytest.raises(NoKernelError, match="a problem with a kernel, got SpikedTensor"):
        kernel_for(tl.SpikedTensor(20, 2, snr=2.0), OnCUDA(), **options)
    with pytest.raises(NoKernelError, match="on CUDA, got one on cpu"):
        kernel_for(Broken(), torch.nn.Linear(1, 1), **options)
