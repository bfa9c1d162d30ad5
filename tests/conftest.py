"""Shapes and types in annotations are checked wherever the tests go; how much fuzzing is done."""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

# Before anything imports the package. Only the modules behind the front door: those that users call
# say themselves what is wrong with an argument, and tests hold them to it.
install_import_hook(
    [
        "torchlimits.comparison",
        "torchlimits.problems.mixture.expectations",
        "torchlimits.problems.two_layer",
        "torchlimits.problems.mixture.dynamics",
        "torchlimits.problems.mixture.quadrature",
    ],
    "beartype.beartype",
)

_ANY_TIME = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
# the same examples every time
settings.register_profile("ci", max_examples=50, derandomize=True, database=None, **_ANY_TIME)
settings.register_profile(
    "nightly", max_examples=1000, derandomize=False, print_blob=True, **_ANY_TIME
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


if "PYTEST_XDIST_WORKER" in os.environ:
    # the cores are taken by the other workers
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs CUDA"))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
