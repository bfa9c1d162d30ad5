import math

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


def test_data_follow_the_model():
    problem = tl.GaussianMixture.binary(dim=10, snr=1.0)
    model = problem.model().to(torch.float64)
    assert problem.sample(1)[0].dtype == torch.float64
    assert problem.sample(1)[1].dtype == torch.float64
    model.to("meta")
    del model
    assert problem.sample(1)[0].dtype == torch.float32


def drawn(problem):
    problem.starts(300)


def trained(problem):
    tl.train(problem, step_size=1.0, time=0.5, progress=False)


@pytest.mark.parametrize("passing", [drawn, trained])
@pytest.mark.parametrize("other", [None, torch.bfloat16])
def test_data_do_not_follow_models_made_in_passing(passing, other):
    """Those of starts and train: the data of a model made before are its own still."""
    problem = tl.GaussianMixture.binary(dim=10, snr=1.0)
    older = None if other is None else problem.model(dtype=other)
    model = problem.model(dtype=torch.float64)
    passing(problem)
    x, y = problem.sample(1)
    assert x.dtype == y.dtype == torch.float64
    problem.loss(model(x), y).backward()
    del model
    assert problem.sample(1)[0].dtype == (other or torch.float32)
    del older
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
    with pytest.raises(TypeError, match=r"expected torch.optim.SGD .*got Adam"):
        problem.dynamics(torch.optim.Adam(problem.model().parameters()))
    sgd = torch.optim.SGD(problem.model().parameters(), lr=0.1)
    with pytest.warns(UserWarning, match="weight_decay=0 is not the problem's ridge=0.1"):
        problem.dynamics(sgd)
