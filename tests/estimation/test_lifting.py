"""`Lift`: parameters with given statistics, at random in all other respects."""

import pytest
import torch
from torch import nn

import torchlimits as tl
from torchlimits.statistics import entries, gram, overlaps, row_norms, squared_lengths
from torchlimits.statistics.summary import SummaryStatistics


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def mixture(kind):
    make = {"binary": tl.GaussianMixture.binary, "xor": tl.GaussianMixture.xor}[kind]
    problem = make(
        30, width=4, snr=2.0, directions="random", generator=torch.Generator().manual_seed(0),
        dtype=torch.float64,
    )  # fmt: skip
    return problem.model(generator=torch.Generator().manual_seed(1)), problem.statistics


def layer(K=3, N=20):
    """One linear layer of its own, parameters "weight" and "bias"."""
    result = nn.Linear(N, K, dtype=torch.float64)
    result.weight.data, result.bias.data = normal(K, N), normal(K, seed=1)
    return result


E = torch.linalg.qr(normal(20, 3, seed=5)).Q.mT
#: of length 2 and more, and not orthogonal
OBLIQUE = normal(3, 3, seed=6) @ E

LAYERS = {
    "oblique means, whole Gram": (
        {"m": overlaps("weight", OBLIQUE), "G": gram("weight"), "b": entries("bias")},
        ["G"],
    ),
    "oblique means, Gram across": (
        {"m": overlaps("weight", OBLIQUE), "R": gram("weight", E)},
        ["R"],
    ),
    "means in two functions": (
        {"a": overlaps("weight", E[:1]), "b": overlaps("weight", E[1:]), "R": gram("weight", E)},
        ["R"],
    ),
    "Gram in full": ({"R": gram("weight")}, []),
    "lengths": ({"m": overlaps("weight", OBLIQUE), "L": squared_lengths("weight")}, []),
    "lengths across": ({"m": overlaps("weight", E), "L": squared_lengths("weight", E)}, []),
    "lengths alone": ({"L": squared_lengths("weight")}, []),
    "means alone": ({"m": overlaps("weight", OBLIQUE)}, []),
    "bias alone": ({"b": entries("bias")}, []),
}


def places():
    for kind in ("binary", "xor"):
        yield pytest.param(*mixture(kind), id=kind)
    for name, (functions, symmetric) in LAYERS.items():
        yield pytest.param(layer(), SummaryStatistics(functions, symmetric=symmetric), id=name)


def start(model, statistics):
    """Statistics that parameters have, which are not the model's."""
    moved = {n: p.detach() + normal(*p.shape, seed=8) for n, p in model.named_parameters()}
    return statistics(moved)


@pytest.mark.parametrize("remainder", ["random", "aligned"])
@pytest.mark.parametrize(("model", "statistics"), places())
def test_the_statistics_of_the_lift_are_the_given_ones(model, statistics, remainder):
    u = start(model, statistics)
    for seed in (0, 1):
        lift = tl.Lift(model, statistics, remainder=remainder, seed=seed)
        parameters = lift(u)
        own = dict(model.named_parameters())
        assert {n: p.shape for n, p in parameters.items()} == {n: p.shape for n, p in own.items()}
        torch.testing.assert_close(statistics(parameters), u, rtol=0, atol=1e-10)
        # what no statistic reads stays as it is
        read = statistics.parameters_read(own)
        assert all(torch.equal(parameters[n], own[n]) for n in own if n not in read)
    # negative control: the model itself has others
    assert float((statistics(own) - u).detach().abs().max()) > 0.1


def test_singular_gram_matrices():
    model, statistics = mixture("xor")
    u = start(model, statistics)
    parallel = torch.tensor([1.0, -2.0, 0.0, 0.5]).double()
    for R in (torch.outer(parallel, parallel), torch.zeros(4, 4).double()):
        u[12:] = R[tuple(torch.triu_indices(4, 4))]
        torch.testing.assert_close(statistics(tl.Lift(model, statistics)(u)), u, rtol=0, atol=1e-10)


def test_no_gram_matrix_at_all_gives_the_nearest_one():
    model, statistics = mixture("binary")
    u = start(model, statistics)
    u[8:] = 0
    u[8], u[9], u[12] = 1.0, 2.0, 1.0  # [[1, 2], [2, 1]]: eigenvalues 3 and -1
    found = statistics(tl.Lift(model, statistics)(u))
    nearest = torch.tensor([1.5, 1.5, 1.5]).double()
    torch.testing.assert_close(found[[8, 9, 12]], nearest, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["binary", "xor"])
def test_remainders_differ(kind):
    model, statistics = mixture(kind)
    u = start(model, statistics)
    lift = tl.Lift(model, statistics, seed=3)
    first, again = lift(u), lift(u)
    assert all(torch.equal(first[n], again[n]) for n in first)
    others = [
        tl.Lift(model, statistics, seed=4)(u),
        tl.Lift(model, statistics, remainder="aligned", seed=3)(u),
        lift(u, torch.Generator().manual_seed(4)),
    ]
    for other in others:
        assert float((first["first.weight"] - other["first.weight"]).abs().max()) > 0.1
        torch.testing.assert_close(first["second.weight"], other["second.weight"])
    torch.testing.assert_close(others[0], others[2])


def test_a_random_remainder_is_spread_and_an_aligned_one_is_not():
    """Of K rows orthogonal to two axes: entries 1/sqrt(N), or K coordinates that have it all."""
    problem = tl.GaussianMixture.xor(1000, snr=1.0, dtype=torch.float64)
    model, d, K = problem.model(), 2, 4
    u = start(model, problem.statistics)
    spread, aligned = (
        tl.Lift(model, problem.statistics, remainder=r)(u)["first.weight"][:, d:]
        for r in ("random", "aligned")
    )
    axes = (aligned.abs() > 1e-12).any(0)
    assert int(axes.sum()) == K
    # a row of length |W_i| and uniform direction: its largest entry is about sqrt(2 log N / N)
    largest = spread.abs().amax(1) / spread.norm(dim=1)
    assert bool((largest < 0.2).all())
    # uniform: the fourth moment of a row's entries is 3/N^2, up to sqrt(96/N)/N^2
    kurtosis = (spread / spread.norm(dim=1, keepdim=True)).pow(4).sum(1) * 1000
    assert bool(((kurtosis - 3).abs() < 4 * (96 / 1000) ** 0.5).all())


def test_lifts_move_little_where_u_does():
    """The right-hand side of a differential equation is to be a function of u."""
    model, statistics = mixture("xor")
    u, lift = start(model, statistics), tl.Lift(*mixture("xor"))
    near = lift(u + 1e-6 * normal(len(u)))
    assert all(float((p - near[n]).abs().max()) < 1e-4 for n, p in lift(u).items())


def test_dtypes_are_those_of_the_model():
    model, statistics = mixture("binary")
    parameters = tl.Lift(model.float(), statistics)(start(model, statistics).double())
    assert all(p.dtype == torch.float32 for p in parameters.values())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": 3}, TypeError, "torch.nn.Module"),
        ({"statistics": {"R": gram("weight")}}, TypeError, "SummaryStatistics"),
        ({"functions": {"n": row_norms("weight")}}, ValueError, "ready-made statistics.*'n'"),
        ({"functions": {"n": lambda p: p["weight"].sum()}}, ValueError, "lift of your own"),
        ({"functions": {"R": gram("no")}}, ValueError, "asked for parameter 'no'"),
        ({"functions": {"R": gram("weight", E)}}, ValueError, "expected overlaps with the dir"),
        ({"functions": {"R": gram("weight", E), "m": overlaps("weight", E[:2])}}, ValueError,
         "expected overlaps with the dir"),
        ({"functions": {"R": gram("weight", E), "m": overlaps("weight", E[[0, 0, 1]])}},
         ValueError, "expected overlaps with the dir"),
        ({"functions": {"m": overlaps("weight", normal(1, 4))}, "model": nn.Conv1d(1, 1, 4)},
         ValueError, r"shape \(K, N\)"),
        ({"remainder": "no"}, ValueError, "'random' or 'aligned'"),
        ({"u": torch.zeros(7)}, ValueError, r"shape \(6,\), got \(7,\)"),
        ({"u": torch.zeros(2, 6)}, ValueError, r"shape \(6,\)"),
        ({"u": [0.0] * 6}, TypeError, "u as a tensor, got list"),
        ({"u": torch.full((6,), torch.nan)}, ValueError, "finite"),
        ({"model": layer(3, 2)}, ValueError, "at least 3 inputs for 3 neurons"),
    ],
)  # fmt: skip
def test_bad_input(change, error, message):
    functions = change.get("functions", {"R": gram("weight")})
    statistics = SummaryStatistics(functions, symmetric={"R"} & {*functions})
    options = {"model": layer(), "statistics": statistics, "u": torch.ones(6), **change}
    options.pop("functions", None)
    u = options.pop("u")
    with pytest.raises(error, match=message):
        tl.Lift(**options)(u)


@pytest.mark.parametrize("remainder", ["random", "aligned"])
@pytest.mark.parametrize("length", [gram, squared_lengths])
def test_another_default_device_changes_nothing(remainder, length):
    model = layer()
    functions = {"m": overlaps("weight", E), "R": length("weight", E)}
    statistics = SummaryStatistics(functions, symmetric=["R"] if length is gram else [])
    u = statistics(dict(model.named_parameters())).detach()
    expected = tl.Lift(model, statistics, remainder=remainder)(u)
    with torch.device("meta"):
        found = tl.Lift(model, statistics, remainder=remainder)(u)
    assert all(torch.equal(found[name], x) for name, x in expected.items())
