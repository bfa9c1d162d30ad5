"""`LowRank` against the same operations on tensors."""

import pytest
import torch
from torch.func import jvp, vmap
from torch.nn import functional as F

from torchlimits.estimation.low_rank import LowRank, NotStructuredError, few_entries

K, N = 6, 24


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


T, E, M, LEFT = normal(N, seed=1), normal(2, N, seed=2), normal(K, N, seed=3), normal(3, K, seed=4)

#: what is computed from the factors alone
STRUCTURED = {
    "columns": lambda w: w @ T,
    "matrix": lambda w: torch.matmul(w, E.mT),
    "from the left": lambda w: LEFT @ w @ T,
    "row from the left": lambda w: LEFT[0] @ w @ T,
    "linear": lambda w: F.linear(E, w, LEFT[0]),
    "gram": lambda w: w @ w.mT,
    "gram by columns": lambda w: (w.mT @ w) @ T @ T,
    "gram of a part": lambda w: w[1:4, 2:20] @ w[:2, 2:20].T,
    "inner product of rows": lambda w: w[0] @ w[-1],
    "rows on rows": lambda w: w @ w[0],
    "row on matrix": lambda w: w[0] @ w.mT,
    "columns of it": lambda w: w[:, 0] @ w[:, 1] + w[1, 2],
    "perpendicular": lambda w: (lambda v: v @ v.mT)(w - (w @ E.mT) @ E),
    "addmm": lambda w: (lambda v: v @ v.mT)(torch.addmm(w, w @ E.mT, E, alpha=-1)),
    "addmm with beta": lambda w: torch.addmm(w, LEFT.mT, LEFT @ M, beta=2, alpha=3) @ T,
    "sums": lambda w: (2 * w - M + w / 3 - (-w) + 1) @ T,
    "from a tensor": lambda w: (3 * M - w).norm(),
    "twice": lambda w: (w + LEFT.mT @ (LEFT @ w)).norm(),
    "scaled columns": lambda w: (w * T) @ T,
    "scaled rows": lambda w: (w * LEFT[0][:, None]) @ T,
    "sum": lambda w: w.sum() + w.mean(),
    "sum over a dimension": lambda w: (
        w.sum(-1), w.sum(0) @ T, w.sum(1, keepdim=True), w.mean(0)[:3]
    ),
    "squares": lambda w: (w.square().sum(), (w**2).sum(-1), (w * w).mean(0), (w * M).sum()),
    "keepdim": lambda w: w.square().sum(-1, keepdim=True),
    "norm": lambda w: (w.norm(), w.norm(dim=-1), w.norm(dim=0), w.norm(2, 1, True), torch.norm(w)),
    "linalg": lambda w: (
        torch.linalg.norm(w), torch.linalg.norm(w, dim=1), torch.linalg.vector_norm(w, dim=(0, 1)),
        torch.linalg.matrix_norm(w), torch.linalg.norm(w[0], 2),
    ),
    "angles": lambda w: (
        F.cosine_similarity(w, T, dim=-1), F.cosine_similarity(T, w, dim=1),
        F.cosine_similarity(w[0], w[1], dim=0), F.normalize(w, dim=-1) @ T,
    ),
    "unpacked": lambda w: (lambda a, b, *rest: a @ b)(*w),
    "the same": lambda w: (
        w.reshape(-1, N).view(K, N).contiguous().clone().double().to(T).transpose(-1, -2).T @ T
    ),
    "one row": lambda w: (w[:1].squeeze() @ T, w[:1].flatten() @ T, w[:1].reshape(-1) @ T),
    "one column": lambda w: w[:, :1].flatten(),
    "type of it": lambda w: w @ T.float().to(w) + w @ T.float().type_as(w),
    "small": lambda w: ((w @ E.mT).tanh().exp(), torch.linalg.svdvals(w @ w.mT), (w @ T).max()),
    "about it": lambda w: w.sum() * w.shape[0] * w.ndim * len(w) * w.numel() * w.size(1),
}  # fmt: skip
#: what needs every entry
LARGE = {
    "entrywise": lambda w: w.tanh().sum(),
    "absolute": lambda w: w.abs().sum() + w.norm(1),
    "spectral": lambda w: torch.linalg.norm(w, 2),
    "itself": lambda w: w,
    "flat": lambda w: w.flatten() @ M.flatten(),
    "chosen": lambda w: w[w > 0].sum(),
    "in place": lambda w: w.mul_(2).sum(),
    "assigned": lambda w: w.__setitem__(0, 1.0),
    "into": lambda w: torch.add(w, 1, out=torch.empty(K, N).double()),
    "data": lambda w: w.data.sum(),
    "numpy": lambda w: w.numpy().sum(),
    "item": lambda w: w.tolist(),
    "power": lambda w: (w**3).sum(),
    "divided": lambda w: (1 / w).sum(),
}


def low_rank(left, right):
    return LowRank.of(M, left, right, small=4 * (K + 4))


def values(function, w):
    found = function(w)
    return tuple(few_entries(x) for x in (found if isinstance(found, tuple) else (found,)))


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("name", STRUCTURED)
def test_as_with_all_entries(name, rank):
    """Values, and second derivatives in the left factor as `estimate` takes them."""
    function = STRUCTURED[name]
    left, right = normal(5, K, rank, seed=5), normal(5, rank, N, seed=6)

    def jet(make, a, x):
        def of(factor):
            return values(function, make(factor, x))

        def along(factor):
            return jvp(of, (factor,), (a,))[1]

        return of(a), jvp(along, (torch.zeros_like(a),), (a,))

    def plain(factor, x):
        return M + factor @ x

    found = vmap(lambda a, x: jet(low_rank, a, x))(left, right)
    expected = vmap(lambda a, x: jet(plain, a, x))(left, right)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", LARGE)
def test_what_needs_all_entries_is_refused(name):
    with pytest.raises(NotStructuredError):
        values(LARGE[name], low_rank(normal(K, 1), normal(1, N)))


def test_no_large_tensor_is_made(monkeypatch):
    monkeypatch.setattr(LowRank, "entries", lambda self: pytest.fail("written out"))
    w = low_rank(normal(K, 1), normal(1, N))
    assert (w[1:] @ w[:1].mT @ w[0, :1]).norm() > 0
