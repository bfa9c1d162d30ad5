"""Rows and estimates have the precision of the parameters, wherever the loop stands."""

import threading

import pytest
import torch

import torchlimits as tl
from torchlimits._exact import _BriefLock, exactly
from torchlimits.record import evaluation


def tracked(around, max_bytes):
    """The rows of five steps within some context, flushed there, and naive ones in float64."""
    torch.manual_seed(0)
    model = torch.nn.Linear(200, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    directions = torch.randn(2, 200)
    directions = torch.linalg.qr(directions.mT).Q.mT
    statistics = {
        "overlap": tl.statistics.overlaps("weight", directions),
        "own": lambda p: p["weight"] @ directions[0],
    }
    rows = []
    with around():
        tracker = tl.track(model, optimizer, statistics, max_bytes=max_bytes)
        for step in range(5):
            optimizer.zero_grad()
            model(torch.randn(8, 200)).float().square().mean().backward()
            optimizer.step()
            W = model.weight.detach().double()
            e = directions.double()
            rows.append(torch.cat([(W @ e.mT).flatten(), W @ e[0]]))
            if step % 2:
                tracker.flush()
    return tracker.trajectory().values[1:], torch.stack(rows)


def half():
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("max_bytes", [2**26, 1], ids=["ring", "hook"])
def test_a_flush_inside_autocast_rounds_nothing(max_bytes, monkeypatch):
    found, expected = tracked(half, max_bytes)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    # negative control
    monkeypatch.setattr(evaluation, "exactly", torch.no_grad)
    monkeypatch.setattr(evaluation, "_AUTOCAST", ())
    found, expected = tracked(half, max_bytes)
    assert float((found - expected).abs().max()) > 1e-4


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_the_precision_of_products_is_the_highest_inside_and_as_it_was_outside(precision):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        settings = torch.backends.cuda.matmul.fp32_precision
        with exactly():
            assert torch.backends.cuda.matmul.fp32_precision in ("ieee", "none")
            assert torch.backends.mkldnn.matmul.fp32_precision in ("ieee", "none")
            assert not torch.is_grad_enabled()
        assert torch.backends.cuda.matmul.fp32_precision == settings
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


def test_threads_that_overlap_put_the_precision_back():
    torch.set_float32_matmul_precision("high")
    both = threading.Barrier(2)
    found = []

    def first():
        with exactly():
            both.wait()  # the other one is inside as well
        both.wait()  # and stays

    def second():
        with exactly():
            both.wait()
            both.wait()
            found.append(torch.backends.cuda.matmul.fp32_precision)

    try:
        threads = [threading.Thread(target=work) for work in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == ["ieee"]
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.is_grad_enabled()
    finally:
        torch.set_float32_matmul_precision("highest")


def test_no_thread_waits_for_a_lock_that_an_interrupt_left_taken():
    lock = _BriefLock(seconds=0.05)
    lock.__enter__()  # and the exception came before its end

    found = []

    def work():
        for _ in range(2):
            with lock:
                found.append(1)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(timeout=1800)
    assert found == [1, 1]
    lock.__exit__()  # a slow owner that comes back after all
    with lock:
        pass


@pytest.mark.gpu
def test_tensor_float_32_rounds_nothing():
    torch.set_float32_matmul_precision("high")
    try:
        W = torch.randn(64, 512, device="cuda")
        exact = W.double() @ W.double().mT
        assert float(((W @ W.mT).double() - exact).abs().max()) > 1e-3
        with exactly():
            torch.testing.assert_close((W @ W.mT).double(), exact, rtol=1e-5, atol=1e-3 / 2)
    finally:
        torch.set_float32_matmul_precision("highest")
