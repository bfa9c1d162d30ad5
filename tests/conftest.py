"""Shapes and types in annotations are checked wherever the tests go."""

import pytest
import torch
from jaxtyping import install_import_hook

# Before anything imports the package. Only the modules behind the front door: those that users call
# say themselves what is wrong with an argument, and tests hold them to it.
install_import_hook(
    [
        "torchlimits.comparison",
        "torchlimits.expectations",
        "torchlimits.networks",
        "torchlimits.problems.mixture_dynamics",
        "torchlimits.quadrature",
    ],
    "beartype.beartype",
)


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs CUDA"))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
