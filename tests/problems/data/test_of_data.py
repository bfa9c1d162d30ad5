"""Data become a covariance: what is computed, and what is refused."""

import pickle

import numpy as np
import pytest
import torch

import torchlimits as tl


def inputs(rows=300, dim=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    scales = torch.arange(1, dim + 1, dtype=torch.float64).sqrt()
    return torch.randn(rows, dim, generator=g, dtype=torch.float64) * scales + 1


def test_covariance_is_numpys():
    x = inputs()
    data = tl.Covariance.of_data(x)
    matrix = data.basis.mT @ torch.diag(data.eigenvalues[0]) @ data.basis
    expected = np.cov(x.numpy().T, bias=True)
    torch.testing.assert_close(matrix, torch.from_numpy(expected), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(data.means[0], x.mean(0))
    assert data.labels is None
    assert data.shares.tolist() == [1.0]
    assert isinstance(data, tl.Covariance)


@pytest.mark.parametrize("form", ["float", "numpy", "list", "int"])
def test_arrays_of_any_kind(form):
    x = (100 * inputs()).round()
    given = {"float": x.float(), "numpy": x.numpy(), "list": x.tolist(), "int": x.int()}[form]
    data = tl.Covariance.of_data(given)
    assert data.trace == pytest.approx(float(x.var(0, correction=0).sum()), rel=1e-5)


def test_classes_are_pooled_about_their_means():
    x, y = inputs(), torch.arange(300) % 3 + 5
    x = x + torch.eye(4, dtype=torch.float64)[y - 5] * 10
    data = tl.Covariance.of_data(x, y)
    expected = sum(np.cov(x[y == k].numpy().T, bias=True) / 3 for k in (5, 6, 7))
    matrix = data.basis.mT @ torch.diag(data.eigenvalues[0]) @ data.basis
    torch.testing.assert_close(matrix, torch.from_numpy(expected), rtol=1e-10, atol=1e-10)
    assert data.labels.tolist() == [5, 6, 7]
    torch.testing.assert_close(data.means, torch.stack([x[y == k].mean(0) for k in (5, 6, 7)]))
    torch.testing.assert_close(data.shares, torch.full((3,), 1 / 3))
    assert data.target.shape == (3, 4)


@pytest.mark.parametrize("centre", [True, False])
def test_the_target_is_numpys_least_squares(centre):
    x = inputs()
    y = x @ torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64) + inputs(seed=1)[:, 0]
    data = tl.Covariance.of_data(x, y, centre=centre)
    design = (x - x.mean(0)).numpy() if centre else x.numpy()
    expected, left, *_ = np.linalg.lstsq(design, y.numpy(), rcond=None)
    torch.testing.assert_close(data.target, torch.from_numpy(expected))
    assert data.residual == pytest.approx((left[0] / 300) ** 0.5)
    assert data.moments.slopes is not None
    torch.testing.assert_close(data.vectors(data.moments.slopes)[0], data.target)


@pytest.mark.parametrize("centre", [True, False])
def test_linear_labels_are_the_prediction(centre):
    x = inputs()
    y = torch.stack([x[:, 0].sin(), x[:, 1] * x[:, 2]], 1)
    data = tl.Covariance.of_data(x, y, centre=centre)
    labels = pickle.loads(pickle.dumps(data.linear_labels))
    directions = labels.directions
    assert directions.shape == (3 if centre else 2, 4)
    torch.testing.assert_close(directions @ directions.mT, torch.eye(len(directions)).double())
    found = labels(x @ directions.mT, torch.zeros(300).long())
    left = data.moments.residuals - data.moments.residuals.mean(0)
    torch.testing.assert_close(y - found, left)
    torch.testing.assert_close(data.label_noise, left.square().mean(0).sqrt())


def test_r_squared_and_classes_with_a_bias():
    x = inputs()
    y = (x[:, 0] + 0.1 * inputs(seed=1)[:, 1] > 1).long()
    data = tl.Covariance.of_data(x, y)
    signs = (2 * y - 1).double().numpy()
    design = np.c_[x.numpy(), np.ones(300)]
    _, left, *_ = np.linalg.lstsq(design, signs, rcond=None)
    assert data.residual == pytest.approx((left[0] / 300) ** 0.5)
    assert data.label_share == pytest.approx(1 - left[0] / 300 / signs.var())


def test_several_outputs_add_up():
    x = inputs()
    y = torch.stack([x[:, 0].sin(), x[:, 1].cos()], 1)
    both = tl.Covariance.of_data(x, y)
    one, other = (tl.Covariance.of_data(x, y[:, k]) for k in range(2))
    assert both.residual**2 == pytest.approx(one.residual**2 + other.residual**2)
    torch.testing.assert_close(both.target, torch.stack([one.target, other.target]))
    for mine, first, second in zip(
        both.fourth_moments()[1], one.fourth_moments()[1], other.fourth_moments()[1], strict=True
    ):
        assert float(mine) == pytest.approx(float(first + second))


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.ones(3), None, r"shape \(M, N\).*got \(3,\)"),
        (torch.ones(5, 2, 2), None, "flatten images"),
        (torch.ones(1, 1), None, "at least 2 rows"),
        (torch.tensor([[1.0, 2.0], [3.0, torch.nan], [0.0, 1.0]]), None, "column 1 of x"),
        (torch.randn(4, 4), None, "more rows than dimensions, got 4 rows of dimension 4"),
        (torch.cat([torch.randn(9, 2), torch.full((9, 2), 0.1)], 1), None, "columns 2, 3 of x"),
        (torch.randn(9, 2) @ torch.tensor([[1.0, 0, 1], [0, 1, 1]]), None, "got 1 of 3 directions"),
        (torch.randn(9, 2), torch.zeros(8), r"shape \(9,\).*got \(8,\)"),
        (torch.randn(3, 2), torch.tensor([0, 0, 1]), r"got 1 of \[1\]"),
        (torch.randn(9, 2), torch.arange(9), "give them as floats"),
        (torch.randn(9, 2), torch.ones(9, 2).long(), "argmax"),
        (torch.randn(9, 2), torch.tensor([1.0] * 8 + [torch.inf]), "finite labels"),
    ],
)
def test_refused(x, y, message):
    with pytest.raises(ValueError, match=message):
        tl.Covariance.of_data(x.double() if x.is_floating_point() else x, y)


def test_refused_settings():
    data = tl.Covariance.of_data(inputs())
    with pytest.raises(ValueError, match="give y"):
        _ = data.target
    with pytest.raises(ValueError, match=r"y\.float"):
        tl.Covariance.of_data(inputs(), torch.arange(300) % 2, centre=False)
    with pytest.raises(ValueError, match="momentum"):
        data.diagnose(lr=0.1, momentum=1.0)
    with pytest.raises(TypeError, match="numbers"):
        tl.Covariance.of_data(inputs(), ["a"] * 300)


def test_it_prints_its_diagnostics():
    data = tl.Covariance.of_data(inputs(), torch.arange(300) % 2)
    assert str(data).startswith("DataCovariance(300 rows, dim=4, ")
    assert "classes' covariances" in str(data)
    assert "\n" not in repr(data)


def test_names_of_classes_are_refused_with_advice():
    with pytest.raises(TypeError, match=r"np\.unique"):
        tl.Covariance.of_data(inputs(), ["a", "b"] * 150)
