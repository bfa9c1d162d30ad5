import copy
import math
import pickle

import pytest
import torch

import torchlimits as tl


def test_the_law_of_the_data():
    """Means and variances, per component, against c_a and 1/snr: 4.5 standard errors, 8 checks."""
    problem = tl.GaussianMixture.xor(dim=12, width=4, snr=5.0, dtype=torch.float64)
    n = 40_000
    x, y = problem.sample(n, generator=torch.Generator().manual_seed(0))
    assert set(y.tolist()) == {0.0, 1.0}
    assert abs(float(y.mean()) - 0.5) < 4.5 * 0.5 / math.sqrt(n)
    for label, axis in ((1.0, 0), (0.0, 1)):
        part = x[y == label]
        error = math.sqrt(1.2 / len(part))
        assert abs(float(part[:, axis].abs().mean()) - 1.0) < 0.1
        assert float(part.mean(0).abs().max()) < 4.5 * error
        spread = part[:, 2:].square().mean()
        assert abs(float(spread) * 5.0 - 1) < 4.5 * math.sqrt(2 / part[:, 2:].numel())
        side = part[part[:, axis] > 0][:, axis]
        assert abs(float((side - 1).square().mean()) * 5.0 - 1) < 0.1


def test_the_start():
    problem = tl.GaussianMixture.binary(dim=400, width=50, snr=1.0)
    model = problem.model(generator=torch.Generator().manual_seed(0))
    assert abs(float(model.first.weight.var()) * 400 - 1) < 4.5 * math.sqrt(2 / 20_000)
    again = problem.model(generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.first.weight, again.first.weight)
    assert model.first.weight.shape == (50, 400)
    assert model.second.weight.shape == (1, 50)


def test_the_network_and_loss_by_hand():
    problem = tl.GaussianMixture.binary(dim=6, width=3, snr=1.0, dtype=torch.float64)
    model = problem.model()
    x, y = problem.sample(4)
    total = 0.0
    for row, label in zip(x, y, strict=True):
        logit = 0.0
        for w, v in zip(model.first.weight, model.second.weight[0], strict=True):
            logit = logit + v * max(float(w @ row), 0.0)
        p = 1 / (1 + math.exp(-float(logit)))
        total -= math.log(p) if label == 1 else math.log(1 - p)
    assert float(problem.loss(model(x), y)) == pytest.approx(total / 4, rel=1e-12)


def test_one_step_of_replicas_is_one_step_of_each():
    problem = tl.GaussianMixture.xor(dim=20, width=4, snr=2.0, ridge=0.1, dtype=torch.float64)
    together = problem.model(replicas=(3,))
    x, y = problem.sample(2, replicas=(3,))
    separate = [problem.model() for _ in range(3)]
    for r, model in enumerate(separate):
        for name, p in model.named_parameters():
            p.data.copy_(together.get_parameter(name)[r])
    for model, xs, ys in [(together, x, y), *zip(separate, x, y, strict=True)]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1, momentum=0.5)
        for _ in range(3):
            optimizer.zero_grad()
            problem.loss(model(xs), ys).backward()
            optimizer.step()
    for r, model in enumerate(separate):
        torch.testing.assert_close(together.first.weight[r], model.first.weight)
        torch.testing.assert_close(together.second.weight[r], model.second.weight)


def test_data_have_the_dtype_asked_for():
    problem = tl.GaussianMixture.binary(dim=10, snr=1.0)
    model = problem.model().to(torch.float64)
    x, y = problem.sample(1, dtype=torch.float64)
    assert x.dtype == y.dtype == torch.float64
    problem.loss(model(x), y).backward()
    assert problem.sample(1)[0].dtype == torch.float32
    own = tl.GaussianMixture.binary(dim=10, snr=1.0, dtype=torch.float64)
    assert own.sample(1)[0].dtype == own.model().first.weight.dtype == torch.float64


def drawn(problem):
    problem.starts(300)


def trained(problem):
    tl.train(problem, step_size=1.0, time=0.5, progress=False)


@pytest.mark.parametrize("passing", [drawn, trained])
@pytest.mark.parametrize("other", [None, torch.bfloat16])
def test_data_do_not_follow_models_made_in_passing(passing, other):
    """Those of starts and train, nor any that the user made."""
    problem = tl.GaussianMixture.binary(dim=10, snr=1.0)
    model = problem.model(dtype=other)
    passing(problem)
    problem.model(dtype=torch.float64)
    x, y = problem.sample(1, dtype=other)
    assert x.dtype == y.dtype == (other or torch.float32)
    problem.loss(model(x), y).backward()
    assert problem.sample(1)[0].dtype == torch.float32


def test_means_of_ones_own():
    e = torch.linalg.qr(torch.randn(20, 3, dtype=torch.float64)).Q.T
    means = torch.stack([e[0], e[1], -e[1], e[0] + 2 * e[2]])
    with pytest.raises(ValueError, match="orthonormal"):
        tl.GaussianMixture(means, [0, 1, 1, 0], width=2, snr=1.0)
    problem = tl.GaussianMixture(means, [0, 1, 1, 0], width=2, snr=1.0, directions=e)
    torch.testing.assert_close(problem.coordinates @ e, means)
    assert len(problem.names) == 2 + 6 + 3
    assert tl.GaussianMixture(means[:3], [0, 1, 1], width=2, snr=1.0).directions.shape == (2, 20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 5}, r"dim >= number of means \+ width = 4 \+ 4 = 8, got dim=5"),
        ({"width": 0}, "width"),
        ({"snr": 0.0}, "snr"),
        ({"snr": -1.0}, "snr"),
        ({"snr": -math.inf}, "snr"),
        ({"snr": math.nan}, "snr"),
        ({"ridge": -0.1}, "ridge"),
        ({"directions": "sideways"}, "'axis' or 'random'"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        tl.GaussianMixture.xor(**{"dim": 20, "width": 4, "snr": 1.0, **options})


@pytest.mark.parametrize(
    ("means", "labels", "message"),
    [
        (2 * torch.eye(2, 20), [0, 1], "orthonormal"),
        (torch.ones(2, 20) / 20**0.5 + torch.eye(2, 20), [0, 1], "orthonormal"),
        (torch.eye(2, 20), [0, 2], "labels 0 or 1"),
        (torch.eye(2, 20), [-1, 1], "labels 0 or 1"),
        (torch.eye(2, 20), [0, 1, 1], "one label a mean"),
        (torch.zeros(1, 20), [1], "not zero"),
        (torch.eye(2, 20) * torch.nan, [0, 1], "finite"),
    ],
)
def test_bad_components(means, labels, message):
    with pytest.raises(ValueError, match=message):
        tl.GaussianMixture(means, labels, width=2, snr=1.0)


@pytest.mark.parametrize("snr", ["4", None, True, [1.0]])
def test_what_is_no_number(snr):
    with pytest.raises(TypeError, match="expected snr to be a number"):
        tl.GaussianMixture.xor(dim=20, snr=snr)


def test_bad_calls():
    problem = tl.GaussianMixture.binary(dim=10, snr=1.0, ridge=0.1)
    with pytest.raises(ValueError, match="batch"):
        problem.sample(0)
    with pytest.raises(ValueError, match="one shape"):
        problem.loss(torch.zeros(3), torch.zeros(3, 1))
    with pytest.raises(ValueError, match="either an optimizer or step_size"):
        problem.dynamics()
    with pytest.raises(ValueError, match="step_size"):
        problem.dynamics(step_size=-1.0)
    with pytest.raises(TypeError, match=r"expected torch.optim.SGD .*got NAdam"):
        problem.dynamics(torch.optim.NAdam(problem.model().parameters()))
    sgd = torch.optim.SGD(problem.model().parameters(), lr=0.1)
    with pytest.warns(UserWarning, match="weight_decay=0 is not the problem's ridge=0.1"):
        problem.dynamics(sgd)


# --- weights --------------------------------------------------------------------------------------

SHARES = [0.5, 0.1, 0.3, 0.1]


def weighted(**options):
    given = {"dim": 12, "width": 2, "snr": 5.0, "weights": SHARES, "dtype": torch.float64}
    return tl.GaussianMixture.xor(**{**given, **options})


def shares_z(problem, n=40_000):
    """z of the frequencies of the components, found by the nearest mean at little noise."""
    x, _ = problem.sample(n, generator=torch.Generator().manual_seed(0))
    found = (x @ problem.means.mT).argmax(-1).bincount(minlength=4) / n
    p = torch.tensor(SHARES, dtype=torch.float64)
    return (found - p).abs() / (p * (1 - p) / n).sqrt()


def test_components_are_drawn_by_their_weights():
    """Frequencies, labels and means; 4.5 standard errors, 29 numbers."""
    assert float(shares_z(weighted(snr=1e4)).max()) < 4.5
    problem, n = weighted(), 40_000
    x, y = problem.sample(n, generator=torch.Generator().manual_seed(1))
    assert abs(float(y.mean()) - 0.6) < 4.5 * (0.24 / n) ** 0.5
    for label, (a, b) in ((1.0, (0, 1)), (0.0, (2, 3))):
        part = x[y == label]
        p, q = SHARES[a], SHARES[b]
        mean = (p * problem.means[a] + q * problem.means[b]) / (p + q)
        error = (part.var(0) / len(part)).sqrt()
        assert bool(((part.mean(0) - mean).abs() < 4.5 * error).all())


def test_equal_shares_are_noticed():
    """The negative control: without weights."""
    assert float(shares_z(weighted(snr=1e4, weights=None)).max()) > 20


def test_what_has_no_probability_is_not_drawn():
    for zero in range(4):
        shares = torch.full((4,), 1 / 3, dtype=torch.float64)
        shares[zero] = 0
        x, _ = weighted(snr=1e8, weights=shares).sample(2000)
        assert set((x @ weighted().means.mT).argmax(-1).tolist()) == set(range(4)) - {zero}


def test_accuracy_weighs_the_components():
    """Against data; and a weight for the one component that a neuron misses."""
    problem = weighted(width=2)
    generator = torch.Generator().manual_seed(3)
    model = problem.model(generator=generator)
    x, y = problem.sample(200_000, generator=generator)
    with torch.no_grad():
        right = ((model(x) > 0) == (y == 1)).double()
        u = problem.statistics(dict(model.named_parameters()))
    error = float(right.std()) / 200_000**0.5 + 1e-3
    assert abs(float(problem.accuracy(u)) - float(right.mean())) < 4.5 * error
    equal = float(weighted(weights=None).accuracy(u))
    assert abs(equal - float(right.mean())) > 10 * error
    # one neuron on mu and one on nu: right for two components, undecided for the others
    u = torch.tensor([1.0, -1, 1, 0, 0, 1, 0, 0, 0])
    assert float(problem.small_noise().accuracy(u)) == pytest.approx(0.8 + 0.5 * 0.2)


def test_equal_weights_are_the_default():
    plain, given = weighted(weights=None), weighted(weights=[0.25] * 4)
    assert given.weights is None
    assert repr(given) == repr(plain)
    assert given.describe() == plain.describe()
    x, y = (p.sample(3, generator=torch.Generator().manual_seed(0)) for p in (plain, given))
    assert all(map(torch.equal, x, y))


def test_weights_are_told_pickled_and_kept():
    problem = weighted()
    expected = torch.tensor(SHARES, dtype=torch.float64)
    assert repr(problem).endswith("ridge=0, weights=[0.5, 0.1, 0.3, 0.1])")
    assert problem.describe()["weights"] == pytest.approx(SHARES)
    for other in (pickle.loads(pickle.dumps(problem)), copy.deepcopy(problem)):
        torch.testing.assert_close(other.weights, expected)
    torch.testing.assert_close(problem.small_noise().weights, expected)
    assert tl.GaussianMixture.binary(10, snr=1.0, weights=[1, 0]).weights.tolist() == [1.0, 0.0]


def test_the_start_does_not_depend_on_the_weights():
    problem, v = weighted(), torch.ones(2)
    assert all(map(torch.equal, problem.random_start(v), weighted(weights=None).random_start(v)))


def test_what_is_known_for_equal_weights_only_is_refused():
    limit = weighted(ridge=0.05).small_noise()
    for known in (limit.fixed_point_components, limit.success_probability):
        with pytest.raises(ValueError, match="components of equal probability"):
            known()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.5, 0.5], r"4 components, shape \(4,\), got shape \(2,\)"),
        ([0.5, 0.5, 0.5, 0.5], "sum 2"),
        ([0.7, 0.7, -0.2, -0.2], "numbers >= 0"),
        ([math.nan, 0.5, 0.25, 0.25], "numbers >= 0"),
        ([math.inf, 0, 0, 0], "numbers >= 0"),
        ([[0.25] * 4], "shape"),
        (0.25, "shape"),
    ],
)
def test_bad_weights(weights, message):
    with pytest.raises(ValueError, match=message):
        weighted(weights=weights)


def test_weights_that_are_no_numbers():
    with pytest.raises(TypeError, match="expected weights as a tensor or numbers"):
        weighted(weights=["a", "b", "c", "d"])
