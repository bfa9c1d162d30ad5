"""The exact chain under clip_grad_norm_ against torch.optim.SGD in the full space."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_
from two_samples import alike

import torchlimits as tl
from torchlimits.problems.network.module import Copies

RUNS, AT = 1000, [4, 20, 40]


def generator(seed):
    return torch.Generator().manual_seed(seed)


def classes():
    """Three classes, two layers in the head, biases, a ridge; N = 60."""
    head = nn.Sequential(nn.GELU(), nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3))
    return tl.NetworkProblem(
        dim=60, width=2, head=head, loss=F.cross_entropy, means=torch.eye(3, 60), snr=2.0,
        labels=torch.tensor([0, 1, 2]), ridge=0.1, dtype=torch.float64,
    )  # fmt: skip


def regression():
    """Kinks, no biases of the first layer; N = 50."""
    return tl.NetworkProblem(
        dim=50, width=2, head=nn.Sequential(nn.ReLU(), nn.Linear(2, 1)), loss=F.mse_loss,
        means=torch.eye(2, 50), labels=torch.tensor([1.0, -1.0]), snr=2.0, bias=False,
        label_noise=0.3, dtype=torch.float64,
    )  # fmt: skip


def student():
    """A teacher-student model; N = 100."""
    return tl.TeacherStudent(
        dim=100, width=2, teacher_width=2, noise=0.3, train_second_layer=False, dtype=torch.float64
    )


def sgd(lr, **options):
    return lambda model: torch.optim.SGD(model.parameters(), lr=lr, **options)


def still_bias(model):
    """The biases do not move, but have gradients that count."""
    moved = [p for name, p in model.named_parameters() if name != "first.bias"]
    still = {"params": [model.first.bias], "lr": 0.0}
    return torch.optim.SGD([{"params": moved}, still], lr=0.05, weight_decay=0.1)


def frozen_head(model):
    """The head requires no gradients, so that these do not count."""
    model.head.requires_grad_(False)
    return torch.optim.SGD(model.parameters(), lr=0.05, weight_decay=0.1)


#: problem, optimizer, batch, the largest norm: some batches are clipped, some are not
CASES = {
    "classes": (classes, sgd(0.05, weight_decay=0.1), 1, 1.5),
    "four samples, momentum": (
        classes, sgd(0.03, weight_decay=0.1, momentum=0.6, dampening=0.2), 4, 0.8,
    ),
    "many samples": (classes, sgd(0.05, weight_decay=0.1), 14, 0.5),
    "a group that stays": (classes, still_bias, 2, 1.1),
    "a frozen head": (classes, frozen_head, 2, 0.7),
    "kinks": (regression, sgd(0.03), 1, 5.0),
    "student": (student, sgd(0.05), 4, 3.0),
}  # fmt: skip

LONG = {"many samples", "a group that stays", "student"}


def clipped(parameters, largest):
    """`clip_grad_norm_` of each replica by itself; how many were shortened, of all."""
    held = [p for p in parameters if p.grad is not None]
    total = sum(p.grad.flatten(1).square().sum(1) for p in held).sqrt()
    factor = (largest / (total + 1e-6)).clamp_max(1)
    for p in held:
        p.grad.mul_(factor.reshape(-1, *[1] * (p.ndim - 1)))
    return float((factor < 1).double().mean())


def full(case):
    """u of runs of torch's SGD at those steps, ``(T, runs, k)``, and the share of short steps."""
    make_problem, make, batch, largest = CASES[case]
    problem = make_problem()
    start = problem.model(generator=generator(3))
    stacked = {name: p.detach().expand(RUNS, *p.shape) for name, p in start.named_parameters()}
    model = Copies(start, stacked, (RUNS,))
    optimizer, parameters, draws = make(model), list(model.parameters()), generator(1)
    rows, shares = [], []
    for step in range(AT[-1]):
        x, y = problem.sample(batch, replicas=(RUNS,), generator=draws)
        problem.loss(model(x), y).backward()
        shares.append(clipped(parameters, largest))
        optimizer.step()
        model.zero_grad()
        if step + 1 in AT:
            with torch.no_grad():
                rows.append(problem.statistics(dict(model.named_parameters())))
    return torch.stack(rows), sum(shares) / len(shares)


def chain(case, **changes):
    make_problem, make, batch, largest = CASES[case]
    problem = make_problem()
    start = problem.model(generator=generator(3))
    options = {"clip_norm": largest, "batch_size": batch, "model": start, **changes}
    exact = problem.reduced_chain(make(start), **options)
    with torch.no_grad():
        u0 = problem.statistics(dict(start.named_parameters()))
    return exact.run(u0, AT[-1], runs=RUNS, generator=generator(2)).values.movedim(1, 0)[AT]


@pytest.mark.filterwarnings("ignore:the optimizer's weight_decay")
@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in CASES]
)
def test_same_law_as_clipped_sgd_in_the_full_space(case):
    real, share = full(case)
    assert 0.1 < share < 0.9
    assert alike(real, chain(case))
    assert not alike(real, chain(case, clip_norm=None))


def test_the_comparison_notices_another_norm(monkeypatch):
    """That of W alone, or of the limit of large N."""
    real, _ = full("classes")
    assert not alike(real, chain("classes", dim=120))
    assert not alike(real, chain("classes", clip_norm=3.3))
    kept = tl.problems.network.first_layer_chain.FirstLayerChain._shorter

    def of_rows(self, by_theta, pull, along, x):
        return kept(self, 0 * by_theta, 0 * pull, along, x)

    monkeypatch.setattr(tl.problems.network.first_layer_chain.FirstLayerChain, "_shorter", of_rows)
    assert not alike(real, chain("classes"))


def test_replicas_are_clipped_as_torch_clips_one():
    torch.manual_seed(0)
    gradients = [torch.randn(5, 2, 3), torch.randn(5, 2)]
    together = [nn.Parameter(torch.zeros_like(g)) for g in gradients]
    for p, g in zip(together, gradients, strict=True):
        p.grad = g.clone()
    assert clipped(together, 2.5) == pytest.approx(0.6)
    for row in range(5):
        alone = [nn.Parameter(torch.zeros_like(g[0])) for g in gradients]
        for p, g in zip(alone, gradients, strict=True):
            p.grad = g[row].clone()
        clip_grad_norm_(alone, 2.5)
        for p, one in zip(together, alone, strict=True):
            torch.testing.assert_close(p.grad[row], one.grad)


def test_a_norm_that_is_never_reached_changes_nothing():
    problem = classes()
    u0 = problem.starts(1, generator=generator(0))[0]
    paths = [
        problem.reduced_chain(step_size=1.0, batch_size=2, clip_norm=largest).run(
            u0, 20, runs=3, generator=generator(1)
        )
        for largest in (None, 1e9)
    ]
    assert torch.equal(paths[0].values, paths[1].values)
    assert paths[1].metadata["parameters"]["clip_norm"] == 1e9
    assert "clip_norm" not in paths[0].metadata["parameters"]


def test_laws_and_schedules_of_clipped_gradients():
    problem = regression()
    u0 = problem.starts(1, generator=generator(0))[0]
    options = {"step_size": 1.0, "clip_norm": 3.0}
    dynamics = problem.dynamics(**options, nodes=64)
    path = dynamics.solve(u0, [0.0, 0.5], band="law")
    law = problem.reduced_chain(**options).law(u0, [0.0, 0.5], generator=generator(0))
    assert torch.equal(path.lower, law.lower)
    falling = problem.dynamics(**options, schedule=lambda t: 1 / (1 + t), nodes=64)
    assert falling.reduced_chain().run(u0, 5).metadata["parameters"]["clip_norm"] == 3.0


def test_what_has_no_chain():
    problem = regression()
    sign = tl.SignSGD(problem.model().parameters(), lr=0.1)
    with pytest.raises(NotImplementedError, match="each entry of a gradient leaves the span"):
        problem.reduced_chain(sign)
    with pytest.raises(NotImplementedError, match=r"no exact chain is known for .*clip_value"):
        problem.dynamics(step_size=1.0, clip_value=1.0).reduced_chain()
    scaled = tl.TeacherStudent(
        dim=50, width=1, teacher_width=1, convention="sqrt", train_second_layer=False
    )
    with pytest.raises(ValueError, match="expected convention='torch'"):
        scaled.reduced_chain(step_size=1.0, clip_norm=1.0)
