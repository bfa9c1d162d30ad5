"""Eigenvalues, eigenvectors and pseudo-inverses of many small matrices, in pieces and at once."""

import pytest
import torch

from torchlimits import _linalg


def symmetric(*shape):
    x = torch.randn(*shape, 3, 3, dtype=torch.float64)
    return x + x.mT


@pytest.fixture(params=[False, True], ids=["at once", "in pieces"])
def _pieces(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(_linalg, "_pieces", lambda x: x.reshape(-1, *x.shape[-2:]).split(2))


@pytest.mark.usefixtures("_pieces")
@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
def test_the_values_of_torch_linalg(shape):
    x = symmetric(*shape)
    values, vectors = _linalg.eigh(x)
    assert values.shape == x.shape[:-1]
    torch.testing.assert_close(vectors * values[..., None, :], x @ vectors)
    torch.testing.assert_close(_linalg.eigvalsh(x), torch.linalg.eigvalsh(x))
    torch.testing.assert_close(_linalg.pinv(x[..., :2], 1e-7), torch.linalg.pinv(x[..., :2]))


@pytest.mark.usefixtures("_pieces")
def test_derivatives_pass():
    x = symmetric(3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: _linalg.eigvalsh((x + x.mT) / 2), (x,))


def test_a_factor_without_derivatives_has_the_same_values():
    m, x = torch.randn(5, 3, 2).double(), torch.randn(5, 3, 3).double()
    x[0, 2], m[1] = 0.0, 0.0
    expected = _linalg.factor_gaussian(m, x @ x.mT, 4.0)
    found = _linalg.factor_gaussian(m, x @ x.mT, 4.0, derivatives=False)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.gpu
def test_more_matrices_than_cusolver_takes_at_once():
    x = symmetric(100_000)
    torch.testing.assert_close(_linalg.eigvalsh(x.cuda()).cpu(), torch.linalg.eigvalsh(x))
    values, vectors = (part.cpu() for part in _linalg.eigh(x.cuda()))
    torch.testing.assert_close(vectors * values[..., None, :], x @ vectors)
    flat = x[..., :2].contiguous()
    torch.testing.assert_close(_linalg.pinv(flat.cuda(), 1e-7).cpu(), torch.linalg.pinv(flat))


@pytest.mark.gpu
def test_a_hundred_thousand_starts_are_solved():
    import torchlimits as tl

    problem = tl.GaussianMixture.binary(dim=1000, snr=4.0)
    u0 = problem.starts(8).repeat(12_500, 1)
    dynamics = problem.dynamics(step_size=1.0, level=-3)
    found = dynamics.solve(u0.cuda(), [0.0, 0.02]).final.cpu()
    torch.testing.assert_close(
        found[-8:], dynamics.solve(u0[:8], [0.0, 0.02]).final, rtol=1e-5, atol=1e-6
    )
