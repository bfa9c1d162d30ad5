"""`tl.Covariance`: the forms it takes, its eigenbasis, and what it refuses."""

import pytest
import torch

import torchlimits as tl


def random_basis(dim, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(dim, dim, generator=generator).double()).Q.mT


def test_a_matrix_is_what_its_eigenvalues_and_eigenvectors_make():
    basis, values = random_basis(7), torch.arange(1.0, 8.0).double()
    matrix = basis.mT @ values.diag() @ basis
    found = tl.Covariance.of(matrix, 7)
    again = found.basis.mT @ found.eigenvalues[0].diag() @ found.basis
    torch.testing.assert_close(again, matrix)
    root = found.spread(torch.eye(7).double())
    torch.testing.assert_close(root @ root, matrix)


def test_commuting_matrices_share_a_basis_even_where_one_has_equal_eigenvalues():
    basis = random_basis(6, seed=1)
    spectra = torch.tensor([[1.0, 1, 1, 2, 2, 3], [5.0, 1, 2, 2, 1, 1]]).double()
    matrices = torch.stack([basis.mT @ s.diag() @ basis for s in spectra])
    found = tl.Covariance.of(matrices, 6)
    assert found.components == 2
    for values, matrix in zip(found.eigenvalues, matrices, strict=True):
        torch.testing.assert_close(found.basis.mT @ values.diag() @ found.basis, matrix)
    z, component = torch.randn(4, 6).double(), torch.tensor([0, 1, 1, 0])
    for x, row, a in zip(found.spread(z, component), z, component, strict=True):
        torch.testing.assert_close(x, tl.Covariance.of(matrices[a], 6).spread(row))


def test_levels_join_eigenvalues_that_differ_by_rounding():
    values = torch.tensor([0.1 + 0.2, 3.0, 0.3]).double()
    levels, place = tl.Covariance(values).levels
    assert len(levels) == 2
    assert place.tolist() == [0, 1, 0]


def test_levels_of_a_float32_matrix_are_those_of_the_float64_one():
    basis, values = random_basis(60), torch.tensor([4.0] * 20 + [1.0] * 40).double()
    matrix = basis.mT @ values.diag() @ basis
    for given in (matrix, matrix.float()):
        found = tl.Covariance.of(given, 60)
        assert [len(x) for x in found.levels] == [2, 60]
        torch.testing.assert_close(found.eigenvalues[0], values, rtol=1e-6, atol=0)


@pytest.mark.parametrize("seed", range(6))
def test_a_singular_float32_matrix_is_called_singular(seed):
    q = torch.randn(20, 19, generator=torch.Generator().manual_seed(seed))
    with pytest.raises(ValueError, match="singular"):
        tl.Covariance.of(q @ q.mT, 20)


@pytest.mark.parametrize("make", [tl.Covariance, lambda s: tl.Covariance.of(s, 5)])
def test_derivatives_by_a_covariance_are_refused(make):
    with pytest.raises(NotImplementedError, match="detach"):
        make(torch.ones(5, requires_grad=True))


def test_fractions_of_any_size_fill_the_dimensions():
    found = tl.Covariance.of([(1.0, 1 / 3), (2.0, 1 / 3), (3.0, 1 / 3)], dim=100)
    assert [int((found.eigenvalues == v).sum()) for v in (1, 2, 3)] == [33, 34, 33]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (torch.tensor([1.0, 0.0, 1.0]), "singular"),
        (torch.tensor([1.0, -1.0, 1.0]), "positive definite"),
        (torch.diag(torch.tensor([1.0, 1.0, -0.1])), "positive definite"),
        (torch.tensor([[1.0, 1.0, 0], [0, 1, 0], [0, 0, 1]]), "symmetric"),
        (torch.tensor([1.0, float("nan"), 1.0]), "finite"),
        (torch.full((3, 3), float("inf")), "finite"),
        ([(1.0, 0.5), (2.0, 0.4)], "sum 1"),
        ([(1.0, 1.5), (2.0, -0.5)], "sum 1"),
        ([(1.0, 0.01), (2.0, 0.99)], "at least one"),
        ([], "empty"),
        (torch.ones(4), "shape"),
        (2.0, "shape"),
        (tl.Covariance(torch.ones(5)), "dim=3"),
        (torch.stack([torch.diag(torch.tensor([1.0, 2, 3])), torch.ones(3, 3) + torch.eye(3)]),
         "common eigenbasis"),
    ],
)  # fmt: skip
def test_what_is_no_covariance_is_refused(given, says):
    with pytest.raises(ValueError, match=says):
        tl.Covariance.of(given, 3)


def test_a_basis_that_is_not_orthonormal_is_refused():
    with pytest.raises(ValueError, match="orthonormal"):
        tl.Covariance(torch.ones(3), 2 * torch.eye(3))
    with pytest.raises(ValueError, match="basis of shape"):
        tl.Covariance(torch.ones(3), torch.eye(2))
    with pytest.raises(TypeError, match="covariance"):
        tl.Covariance.of("white", 3)
