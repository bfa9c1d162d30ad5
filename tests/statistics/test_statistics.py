import itertools

import pytest
import torch

import torchlimits as tl
from torchlimits.statistics import gram, overlaps, row_norms, second_layer


@pytest.fixture
def parameters():
    generator = torch.Generator().manual_seed(1)
    return {
        "first.weight": torch.randn(3, 8, generator=generator, dtype=torch.float64),
        "second.weight": torch.randn(1, 3, generator=generator, dtype=torch.float64),
    }


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(2)
    return tl.GaussianMixture.xor(dim=8, width=3, snr=1.0, directions="random", generator=generator)


def naive(parameters, directions):
    """v, m, R by loops over neurons."""
    W, v = parameters["first.weight"], parameters["second.weight"][0]
    overlap = [[float(w @ e) for e in directions] for w in W]
    rest = []
    for w, row in zip(W, overlap, strict=True):
        for e, m in zip(directions, row, strict=True):
            w = w - m * e
        rest.append(w)
    upper = [float(rest[i] @ rest[j]) for i in range(len(W)) for j in range(i, len(W))]
    return torch.tensor([*v.tolist(), *itertools.chain(*overlap), *upper], dtype=torch.float64)


def test_mixture_statistics_against_loops(problem, parameters):
    expected = naive(parameters, problem.directions)
    torch.testing.assert_close(problem.statistics(parameters), expected)
    assert problem.statistics.names_of(parameters) == problem.names


def test_leading_dimensions_are_replicas(problem, parameters):
    stacked = {name: torch.stack([p, 2 * p, 3 * p]) for name, p in parameters.items()}
    rows = problem.statistics(stacked)
    assert rows.shape == (3, len(problem.names))
    for factor, row in enumerate(rows, start=1):
        scaled = {name: factor * p for name, p in parameters.items()}
        torch.testing.assert_close(row, problem.statistics(scaled))


def test_jacobian_against_differences(problem, parameters):
    jacobian = problem.statistics.jacobian(parameters)
    for name, p in parameters.items():
        direction = torch.randn_like(p)
        up, down = ({**parameters, name: p + s * 1e-6 * direction} for s in (1, -1))
        difference = (problem.statistics(up) - problem.statistics(down)) / 2e-6
        slope = (jacobian[name] * direction).flatten(1).sum(1)
        torch.testing.assert_close(slope, difference, atol=1e-7, rtol=1e-7)


def test_ready_made_ones(parameters):
    W = parameters["first.weight"]
    e = torch.eye(2, 8, dtype=torch.float64)
    torch.testing.assert_close(overlaps("first.weight", e)(parameters), W[:, :2])
    torch.testing.assert_close(gram("first.weight", e)(parameters), W[:, 2:] @ W[:, 2:].T)
    torch.testing.assert_close(gram("first.weight")(parameters), W @ W.T)
    torch.testing.assert_close(row_norms("first.weight")(parameters), W.square().sum(1).sqrt())
    assert second_layer("second.weight")(parameters).shape == (3,)


def test_small_perpendicular_parts_keep_their_digits():
    """W W^T - m m^T in float32 would have an error of 1e-2 here, beside R = 1e-4."""
    W = torch.tensor([[300.0, 0.01]])
    R = gram("w", torch.eye(1, 2))({"w": W})
    torch.testing.assert_close(R, torch.tensor([[1e-4]]), rtol=1e-5, atol=0.0)


def test_names_of_entries():
    statistics = tl.SummaryStatistics(
        {"a": lambda p: p["w"].sum(), "b": lambda p: p["w"], "c": lambda p: p["w"] @ p["w"].T},
        symmetric=["c"],
    )
    w = {"w": torch.arange(6.0).reshape(2, 3)}
    expected = ["a", "b[0,0]", "b[0,1]", "b[0,2]", "b[1,0]", "b[1,1]", "b[1,2]"]
    assert statistics.names_of(w) == [*expected, "c[0,0]", "c[0,1]", "c[1,1]"]
    assert statistics(w).tolist() == [15.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 5.0, 14.0, 50.0]
    assert statistics.select(["b"]).names_of(w) == expected[1:]


@pytest.mark.parametrize(
    ("functions", "error", "message"),
    [
        ({}, ValueError, "at least one statistic"),
        ({"a": 3}, TypeError, "function of the parameters"),
        ({"a": lambda p: p["nope"]}, ValueError, "asked for parameter 'nope'"),
        ({"a": lambda p: 3.0}, TypeError, "to return a tensor, got float"),
        ({"a": lambda p: p["w"] * 1j}, TypeError, "to be a real"),
    ],
)
def test_bad_functions(functions, error, message):
    with pytest.raises(error, match=message):
        tl.SummaryStatistics(functions)({"w": torch.ones(2)})


def test_unknown_names():
    with pytest.raises(ValueError, match="expected names among"):
        tl.SummaryStatistics({"a": lambda p: p["w"]}).select(["b"])
    with pytest.raises(ValueError, match="symmetric names among"):
        tl.SummaryStatistics({"a": lambda p: p["w"]}, symmetric=["b"])


def test_statistics_of_another_network(problem):
    with pytest.raises(ValueError, match="belong to another network"):
        problem.statistics({"weight": torch.ones(2)})
