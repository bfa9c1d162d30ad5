"""`explain_rate`: its numbers against the dynamics of a problem that theory knows."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import torchlimits as tl
from torchlimits.estimation import explain_rate as module
from torchlimits.estimation.first_layer import FirstLayer


def half_squares(output, target):
    return (output.squeeze(-1) - target).square().mean() / 2


def loader_of(x, y, batch=1):
    return DataLoader(TensorDataset(x, y), batch_size=batch)


def teacher_student(batch, momentum, dim=400, samples=2000):
    """(explanation, what the effective dynamics say the ratio is)."""

    def loss(output, target):
        return (output - target).square().mean() / 2

    head = nn.Sequential(nn.Tanh(), nn.Linear(2, 1))
    problem = tl.NetworkProblem(
        dim=dim, width=2, head=head, loss=loss, bias=False, label_noise=0.3, snr=1.0,
        directions=torch.eye(dim)[:1], labels=lambda x, component: x[:, :1].sin(),
    )  # fmt: skip
    g = torch.Generator().manual_seed(0)
    model = problem.model(generator=g).double()
    x, y = problem.sample(samples, generator=g, dtype=torch.float64)
    lr = 0.5 / dim
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    found = tl.explain_rate(model, loss, loader_of(x, y, batch), optimizer, samples=samples)
    dynamics = problem.dynamics(optimizer, batch_size=batch)
    statistics = problem.statistics(dict(model.named_parameters()))
    u = statistics.detach()[None].double()
    drift, corrector = (
        dict(zip(dynamics.names, part[0].tolist(), strict=True))
        for part in (dynamics.drift(u), dynamics.corrector(u))
    )
    m = torch.tensor([float(u[0, dynamics.names.index(f"m[{i},0]")]) for i in range(2)])
    dm = torch.tensor([drift[f"m[{i},0]"] for i in range(2)])
    pairs = [(0, 0), (0, 1), (1, 1)]

    def gram(values, products):
        weights = torch.tensor([1.0, 2.0, 1.0])  # the entry off the diagonal is there twice
        entries = torch.tensor([values[f"R[{i},{j}]"] + products[i, j] for i, j in pairs])
        return float((weights * entries.square()).sum().sqrt())

    expected = gram(corrector, torch.zeros(2, 2)) / gram(
        drift, torch.outer(m, dm) + torch.outer(dm, m)
    )
    return found, expected


@pytest.mark.parametrize(("batch", "momentum"), [(1, 0.0), (4, 0.5)])
def test_the_ratio_is_that_of_the_effective_dynamics(batch, momentum):
    found, expected = teacher_student(batch, momentum)
    # corrections of order 1/N to |x|^2 are below 1 %
    assert abs(found.ratio - expected) < 4 * found.ratio_error + 0.01 * expected
    assert found.ratio_error < 0.1 * expected
    assert found.kind == "critical"
    assert found.step_size == pytest.approx(0.5 / (1 - momentum))
    # a control: the ratio of the other batch size and momentum is not within the errors
    factor = 1 / (1 - momentum) / batch if batch > 1 else 2
    assert abs(found.ratio - expected / factor) > 4 * found.ratio_error + 0.01 * expected


def linear(lr, batch=1, samples=1000, dim=50, **how):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(samples, dim, generator=g) * torch.linspace(0.5, 1.5, dim)
    y = x @ torch.ones(dim) / dim**0.5 + torch.randn(samples, generator=g)
    model = nn.Linear(dim, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, **how)
    return tl.explain_rate(model, half_squares, loader_of(x, y, batch), optimizer, samples=samples)


@pytest.mark.parametrize(
    ("lr", "batch", "kind"),
    [(1e-5, 1, "subcritical"), (0.01, 1, "critical"), (0.06, 1, "supercritical"),
     (0.06, 8, "critical")],
)  # fmt: skip
def test_regimes_of_least_squares(lr, batch, kind):
    found = linear(lr, batch)
    trace = float((torch.linspace(0.5, 1.5, 50) ** 2).sum())
    assert found.kind == kind
    assert found.gain == pytest.approx(lr * trace / 2 / batch, rel=0.05)
    assert abs(found.gain - lr * trace / 2 / batch) < 4 * found.gain_error
    assert found.largest == pytest.approx(lr * 1.5**2, rel=0.5)
    assert found.trace == pytest.approx(trace, rel=0.05)


def test_momentum_and_dampening_count():
    assert linear(0.01, momentum=0.5).gain == pytest.approx(2 * linear(0.01).gain)
    damped = linear(0.01, momentum=0.5, dampening=0.5)
    assert damped.gain == pytest.approx(linear(0.01).gain)


def test_norms_are_those_of_matrices():
    """Over many small samples the squared norms' means are those of the expectations."""
    g = torch.Generator().manual_seed(2)
    every = torch.randn(8_000, 3, generator=g).double() + torch.tensor([0.5, 0.0, 0.3])
    h = torch.roll(every, 1, 1) * 0.5 + 0.2
    weight = torch.randn(3, 7, generator=g).double()
    squares = torch.rand(8_000, generator=g).double()
    outer = every.mT @ h / len(h)
    drift = outer + outer.mT + 2 * 0.3 * weight @ weight.mT
    expected = (every.mT @ (squares[:, None] * every) / len(h)).norm() / drift.norm()
    found, error = zip(
        *(module._ratio(every[i::10], h[i::10], squares[i::10], weight, 0.3) for i in range(10)),
        strict=True,
    )
    values = torch.tensor(found)
    assert abs(float(values.mean()) - float(expected)) < 4 * float(values.std()) / 10**0.5
    assert sum(error) / 10 == pytest.approx(float(values.std()), rel=0.7)


def test_curvature_is_the_hessians():
    model = nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 4)).double()
    x, y = torch.randn(9, 5).double(), torch.randint(4, (9,))
    loss = nn.functional.cross_entropy
    _, found = FirstLayer("0", model[0]).gradients(model, loss, x, y)
    for i in range(9):

        def of_h(h, i=i):
            return loss(model[2](h.tanh())[None], y[i : i + 1])

        eigenvalues = torch.linalg.eigvalsh(torch.func.hessian(of_h)(model[0](x[i]).detach()))
        largest = eigenvalues[eigenvalues.abs().argmax()].detach()
        assert float(found[i]) == pytest.approx(float(largest), abs=0.05 * float(largest.abs()))


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Dropout(), nn.Linear(4, 1))
    x, y = torch.randn(64, 3, 4), torch.randn(64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    found = tl.explain_rate(model, half_squares, loader_of(x, y, 16), optimizer)
    assert model.training
    assert model[2].training
    assert all(p.grad is None for p in model.parameters())
    assert found.layer == "1"
    assert found.batch_size == 16
    assert found.samples == 64
    assert "model.eval(), for the sake of Dropout" in str(found)
    assert "<table>" in found.html()


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"model": nn.Sequential(nn.Conv1d(1, 1, 3), nn.Linear(4, 1))}, ValueError, "Conv1d"),
        ({"model": nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 1))}, ValueError, "LayerNorm"),
        ({"loss": lambda o, y: (o.squeeze(-1) - y).square().sum()}, ValueError, "mean over"),
        ({"optimizer": torch.optim.Adam([nn.Parameter(torch.ones(2))])}, TypeError, "Adam"),
        ({"optimizer": torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=1.0)}, ValueError,
         "holds the weight"),
        ({"loader": [{"x": 1}]}, TypeError, "batches"),
        ({"loader": [(torch.ones(3, 6), torch.ones(3))]}, ValueError, "at least 20"),
    ],
)  # fmt: skip
def test_refused(change, kind, message):
    model = change.get("model", nn.Linear(6, 1))
    shape = (64, 1, 6) if "Conv" in message else (64, 6)
    given = {
        "model": model,
        "loss": half_squares,
        "loader": loader_of(torch.randn(*shape), torch.randn(64)),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
    } | change
    with pytest.raises(kind, match=message):
        tl.explain_rate(**given)


@pytest.mark.filterwarnings("ignore:Using a target size")  # torch says what it broadcasts
def test_what_is_not_finite_or_does_not_fit_is_refused():
    x = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    model = nn.Linear(5, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    mse = nn.functional.mse_loss
    with pytest.raises(ValueError, match="labels"):
        tl.explain_rate(model, mse, [(x, x[:, 0])], optimizer)
    with pytest.raises(ValueError, match="takes the inputs"):
        tl.explain_rate(model, mse, [(x[:, :3], x[:, :1])], optimizer)
    assert (
        "momentum"
        not in str(tl.explain_rate(model, mse, [(x, x[:, :1])], optimizer)).split("(1 - momentum)")[
            0
        ]
    )
    with torch.no_grad():
        model.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        tl.explain_rate(model, mse, [(x, x[:, :1])], optimizer)
