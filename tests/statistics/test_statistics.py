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


# --- statistics beside others --------------------------------------------------------------------


def norm(p):
    return p["first.weight"].norm()


def test_own_statistics_stand_beside_those_of_a_problem():
    problem = tl.GaussianMixture.xor(dim=20, width=3, snr=2.0)
    both = problem.statistics | {"mine": norm, "rows": lambda p: p["first.weight"].norm(dim=1)}
    assert both.symmetric == problem.statistics.symmetric
    parameters = dict(problem.model().named_parameters())
    names = [*problem.names, "mine", "rows[0]", "rows[1]", "rows[2]"]
    assert both.names_of(parameters) == names
    before = ({"mine": norm} | problem.statistics).names_of(parameters)
    assert before == ["mine", *problem.names]
    # functions of one network, of every replica and snapshot
    many = dict(problem.model(replicas=(2, 5)).named_parameters())
    u = both(many)
    assert u.shape == (2, 5, len(names))
    for i, j in ((0, 0), (1, 4)):
        one = {name: p[i, j] for name, p in many.items()}
        torch.testing.assert_close(u[i, j, -4], norm(one))
        torch.testing.assert_close(u[i, j, -3:], one["first.weight"].norm(dim=1))


def test_recorded_beside_a_problem_they_are_those_of_a_loop():
    problem = tl.GaussianMixture.binary(dim=20, snr=2.0)
    model = problem.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    own = {"mine": norm, "output": tl.statistics.of_model(lambda m: m(torch.ones(2, 20)).mean())}
    expected = []
    with tl.track(model, optimizer, problem.statistics | own) as tracker:
        for _ in range(3):
            optimizer.zero_grad()
            x, y = problem.sample(1)
            problem.loss(model(x), y).backward()
            expected.append(
                [x.item() for x in (model.first.weight.norm(), model(torch.ones(2, 20)).mean())]
            )
            optimizer.step()
    found = tracker.trajectory().select(["mine", "output"]).values[:3]
    torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=1e-5, atol=1e-6)


def test_of_two_of_one_name_the_right_one_counts():
    square = {"s": lambda p: p["w"] @ p["w"].mT}
    left = tl.SummaryStatistics(square, symmetric=["s"])
    x = {"w": torch.eye(2)}
    assert (left | {"s": lambda p: p["w"]}).names_of(x) == ["s[0,0]", "s[0,1]", "s[1,0]", "s[1,1]"]
    assert ({"s": lambda p: p["w"]} | left).names_of(x) == ["s[0,0]", "s[0,1]", "s[1,1]"]
    assert (left | tl.SummaryStatistics({"t": lambda p: p["w"].sum()})).symmetric == {"s"}
    one, two = (tl.SummaryStatistics(square, parameter_dims={"w": dims}) for dims in (2, 3))
    with pytest.raises(ValueError, match="parameter_dims that agree"):
        one | two
    with pytest.raises(TypeError, match="unsupported operand"):
        left | 3


def test_they_are_no_mapping_and_say_why():
    with pytest.raises(TypeError, match=r"expected statistics \| \{name: function\}"):
        {**tl.SummaryStatistics({"s": norm}, symmetric=["s"])}
