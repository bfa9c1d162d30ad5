"""`NetworkProblem` of data: what it takes from them where it is not given."""

import pickle

import pytest
import torch
from torch import nn

import torchlimits as tl

N = 12


def classes(rows=3000):
    g = torch.Generator().manual_seed(0)
    y = (torch.rand(rows, generator=g) < 0.25).long()
    centres = torch.stack([torch.full((N,), 0.5), torch.linspace(-1, 1, N)]).double()
    scales = torch.tensor([2.0] * 4 + [1.0] * 8).double().sqrt()
    return centres[y] + torch.randn(rows, N, generator=g).double() * scales, y


def numbers(rows=3000):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(rows, N, generator=g).double() * torch.linspace(0.5, 2, N) + 0.3
    return x, x[:, 0] - x[:, 5] + 0.2 * torch.randn(rows, generator=g).double()


def network(outputs=1):
    return nn.Sequential(nn.Linear(N, 2), nn.Tanh(), nn.Linear(2, outputs))


def test_classes_are_components():
    x, y = classes()
    data = tl.Covariance.of_data(x, y)
    problem = tl.NetworkProblem.of(
        network(2), "0", loss=nn.functional.cross_entropy, covariance=data
    )
    torch.testing.assert_close(problem.means.double(), data.means)
    assert problem.weights.tolist() == pytest.approx(data.shares.tolist())
    g = torch.Generator().manual_seed(2)
    drawn, labels = problem.sample(20_000, generator=g, dtype=torch.float64)
    for k in (0, 1):
        own = drawn[labels == k]
        error = (data.trace / len(own)) ** 0.5
        assert float((own.mean(0) - data.means[k]).norm()) < 3 * error
    again = tl.Covariance.of_data(drawn, labels)
    assert again.trace == pytest.approx(data.trace, rel=0.03)
    path = problem.dynamics(step_size=0.1, nodes=2**8).solve(problem.starts(1)[0], [0.0, 0.5])
    assert bool(path.values.isfinite().all())
    assert problem.data_report.verdict in ("holds", "doubtful", "fails")
    assert "classes' covariances" in str(problem.data_report)


def test_numbers_are_their_best_linear_prediction():
    x, y = numbers()
    data = tl.Covariance.of_data(x, y)
    problem = tl.NetworkProblem.of(network(), "0", loss=nn.functional.mse_loss, covariance=data)
    g = torch.Generator().manual_seed(2)
    drawn, labels = problem.sample(20_000, generator=g, dtype=torch.float64)
    again = tl.Covariance.of_data(drawn, labels)
    assert float((again.target - data.target).norm()) < 0.02 * float(data.target.norm())
    assert again.residual == pytest.approx(data.residual, rel=0.03)
    assert float((again.means - data.means).norm()) < 4 * (data.trace / 20_000) ** 0.5
    torch.testing.assert_close(
        pickle.loads(pickle.dumps(problem)).sample(3, generator=g.manual_seed(3))[1],
        problem.sample(3, generator=g.manual_seed(3))[1],
    )
    path = problem.dynamics(step_size=0.1, nodes=2**8).solve(problem.starts(1)[0], [0.0, 0.5])
    assert bool(path.values.isfinite().all())


def test_what_is_given_stays():
    x, y = classes()
    data = tl.Covariance.of_data(x, y)
    problem = tl.NetworkProblem.of(
        network(), "0", loss=nn.functional.mse_loss, covariance=data, snr=4.0,
        labels=torch.tensor([1.0, -1.0]), weights=[0.4, 0.6],
    )  # fmt: skip
    assert problem.snr == 4.0
    assert problem.weights.tolist() == pytest.approx([0.4, 0.6])
    assert set(problem.sample(50)[1].flatten().tolist()) == {1.0, -1.0}


def test_refused():
    x, y = classes()
    loss = nn.functional.mse_loss
    with pytest.raises(TypeError, match=r"labels as a tensor.* or covariance="):
        tl.NetworkProblem.of(network(), "0", loss=loss, snr=1.0)
    with pytest.raises(TypeError, match=r"expected a number snr=, or covariance="):
        tl.NetworkProblem.of(network(), "0", loss=loss, labels=torch.ones(1))
    with pytest.raises(ValueError, match="expected labels=, got none, and data without"):
        tl.NetworkProblem.of(network(), "0", loss=loss, covariance=tl.Covariance.of_data(x))
    with pytest.raises(ValueError, match="leave out means="):
        tl.NetworkProblem.of(
            network(), "0", loss=loss, covariance=tl.Covariance.of_data(x, y), means=torch.eye(2, N)
        )
    plain = tl.NetworkProblem.of(network(), "0", loss=loss, snr=1.0, labels=torch.ones(1))
    assert plain.data_report is None


def test_labels_keep_their_mean_and_noise_is_what_is_left_about_it():
    g = torch.Generator().manual_seed(3)
    x = torch.randn(3000, N, generator=g).double()
    y = x[:, :2].sum(1) / 2 + 3 + 0.3 * torch.randn(3000, generator=g).double()
    problem = tl.NetworkProblem.of(
        network(), "0", loss=nn.functional.mse_loss, covariance=tl.Covariance.of_data(x, y)
    )
    assert problem.describe()["label_noise"] == pytest.approx(0.3, rel=0.05)
    _, drawn = problem.sample(20_000, generator=g, dtype=torch.float64)
    assert float(drawn.mean()) == pytest.approx(float(y.mean()), abs=0.03)
    assert float(drawn.var()) == pytest.approx(float(y.var()), rel=0.05)


def test_numbers_with_noise_of_different_sizes_draw_a_warning():
    g = torch.Generator().manual_seed(4)
    x = torch.randn(3000, N, generator=g).double()
    noise = torch.randn(3000, 2, generator=g).double() * torch.tensor([1.0, 0.01])
    data = tl.Covariance.of_data(x, x[:, :2] + noise)
    with pytest.warns(UserWarning, match=r"from 0\.0099\d to 1\.0"):
        tl.NetworkProblem.of(network(2), "0", loss=nn.functional.mse_loss, covariance=data)
