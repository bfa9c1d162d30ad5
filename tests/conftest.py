"""Shapes and types in annotations are checked wherever the tests go; how much fuzzing is done."""

import ast
import os
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

PACKAGE = Path(__file__).parent.parent / "torchlimits"


#: besides those of the front door: what has words of its own for users' arguments, ...
NOT_CHECKED = {
    *("_checks", "_values", "dynamics.diffusive", "dynamics.flow", "dynamics.reduced_chain"),
    *("problems.mixture.dynamics", "problems.mixture.small_noise", "problems.mixture.components"),
    *("problems.network.components", "problems.network.labels", "problems.network.checks"),
    *("problems.network.trainable", "problems.network.own_module", "problems.network.head"),
    *("problems.network.label_laws", "problems.network.law_checks"),
    *("problems.network.directions", "problems.mixture.quality", "problems.mixture.success"),
    *("problems.spiked.dynamics", "problems.spiked.equator", "problems.spiked.samplers"),
    *("problems.spiked.spike", "statistics.ready_made", "estimation.estimated"),
    *("statistics.accuracy", "statistics.activations", "statistics.fixed_data"),
    *("statistics.gradient_norm", "statistics.held_out", "statistics.of_model"),
    *("statistics.private_copy", "statistics.sharpness"),
    *("estimation.per_sample_gradients", "optim.sgd", "optim.parameter_groups"),
    *("optim.chosen_limit", "comparison.comparison"),
    *(
        "figures.draw",
        "tensorboard.overlay",
        "tensorboard.writer",
        "tensorboard.live",
        "tensorboard.tags",
    ),
    *("integrations.base", "integrations.lightning", "integrations.transformers"),
    # ... what is handed parameters that cannot be looked at, on the meta device, ...
    "record.ring",
    # looking into a mapping would count as reading it
    *("record.trial", "record.followed", "statistics.reads", "record.untouched"),
    "statistics.slow_variable",
    "record.model_state",
    # ... what restores Python's random numbers, which beartype draws from to look into lists, ...
    "statistics.seeded",
    # ... what torch.compile traces, ...
    *("_stateless", "problems.network.module"),
    *("problems.two_layer", "problems.mixture.trainable", "problems.spiked.estimate"),
    # ... and what tests hand doubles of CUDA's objects to
    *("ensemble.compiled", "ensemble.cuda_graph", "ensemble.launches"),
}


def private_modules():
    """All but those whose public names check arguments themselves, in words that tests hold."""
    front_door = ast.parse((PACKAGE / "__init__.py").read_text())
    tables = {
        ast.unparse(node.targets[0]): node.value
        for node in front_door.body
        if isinstance(node, ast.Assign)
    }
    homes = {*ast.literal_eval(tables["_PUBLIC"]), *ast.literal_eval(tables["_MODULES"]).values()}
    files = (f.relative_to(PACKAGE).with_suffix("") for f in PACKAGE.rglob("*.py"))
    names = {".".join(f.parts) for f in files if f.name != "__init__"}
    assert names >= NOT_CHECKED, f"no such modules: {NOT_CHECKED - names}"
    return sorted(f"torchlimits.{name}" for name in names - homes - NOT_CHECKED)


# before anything imports the package
install_import_hook(private_modules(), "beartype.beartype")

_ANY_TIME = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
# the same examples every time
settings.register_profile("ci", max_examples=50, derandomize=True, database=None, **_ANY_TIME)
settings.register_profile(
    "nightly", max_examples=1000, derandomize=False, print_blob=True, **_ANY_TIME
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


# tables are as wide as they are in a pipe, whatever terminal the tests were started from
os.environ.pop("COLUMNS", None)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell's background jobs are started so, and what tests start inherits it
    signal.signal(signal.SIGINT, signal.default_int_handler)

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
