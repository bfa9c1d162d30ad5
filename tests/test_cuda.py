"""What must hold on CUDA, and what of that a CPU can rehearse: `scripts/cuda_checks.py`."""

import importlib
import sys
from pathlib import Path

import pytest

SCRIPTS = str(Path(__file__).parent.parent / "scripts")
sys.path.insert(0, SCRIPTS)
try:
    CHECKS = importlib.import_module("cuda_checks").CHECKS
finally:
    sys.path.remove(SCRIPTS)


def name(check):
    return check.__name__


@pytest.mark.parametrize("check", [one for one in CHECKS if not one.cuda_only], ids=name)
def test_on_the_cpu(check):
    check("cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("check", CHECKS, ids=name)
def test_on_cuda(check):
    check("cuda")
