"""Documentation: `sphinx-build -W --keep-going docs docs/_build/html`, with the extra `docs`."""

import importlib.util
import re
from pathlib import Path

import torchlimits

HERE = Path(__file__).parent
PYPROJECT = (HERE.parent / "pyproject.toml").read_text()

project = "torchlimits"
author = copyright = "The torchlimits authors"
version = release = re.findall(r'^version = "(.*)"', PYPROJECT, flags=re.MULTILINE)[0]
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "recipes"]
nitpicky = True

# pages
html_theme = "furo"
html_title = f"torchlimits {version}"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_copy_source = False
myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
copybutton_exclude = ".linenos, .gp, .go"
suppress_warnings: list[str] = []

# equations are drawn by a MathJax that is shipped with the pages: nothing is loaded from elsewhere
mathjax = importlib.util.find_spec("mathjax")
if mathjax is None or not mathjax.submodule_search_locations:
    raise ModuleNotFoundError("expected the extra docs: pip install 'torchlimits[docs]'")
html_static_path.append(mathjax.submodule_search_locations[0] + "/static/mathjax/es5/tex-svg.js")
mathjax_path = "tex-svg.js"

# examples are executed when the pages are built
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_execution_timeout = 120
nb_merge_streams = True

# the reference
templates_path = ["_templates"]
autosummary_generate = True
# some file systems take Estimate and estimate for one name
autosummary_filename_map = {
    f"torchlimits.{name}": f"{'class' if name[0].isupper() else 'function'}-{name}"
    for name in dir(torchlimits)
}
autodoc_typehints = "none"  # types and shapes are in the docstrings, in words and symbols
autodoc_member_order = "bysource"
# what these bases have is documented by those who wrote them
others = "Module Optimizer Protocol Generic Callback TrainerCallback Exception RuntimeError"
autodoc_default_options = {"members": True, "inherited-members": ",".join(others.split())}
napoleon_numpy_docstring = False
napoleon_use_ivar = True
default_role = "py:obj"
suppress_warnings = ["ref.python"]  # of a name that several classes have, the nearest is meant
WITHOUT_A_PAGE = [
    r"AdaGradNorm(?:Field|Limit)",
    "AdaptiveLimit",
    "Entries",
    "Blocks",
    r"(?:\S+\.)?Finding",
    "Estimator",
    r"FirstLayer(?:Chain|Field)(?:\.averages)?",
    "Follower",
    r"GradientField\.\w+",
    "Gains",
    "Gram",
    r"Layout\.split",
    "LeastSquaresField",
    "PARTS",
    "RESOLUTION",
    "Recording",
    r"(?:\S+\.)?LinearLabels",
    "SGDLimit",
    "SecondLayer",
    r"Setting\.reads",
    "SpikedField",
    r"MixtureField(?:\.risk)?",
    "NoKernelError",
    r"Flow\.equation",
    r"VectorField\.error",
    r"FixedPointComponent\.classes",
    r"small_noise\.components",
    r"(?:\S+\.)?relu_moments",
    r"(?:torchlimits\.comparison\.\w+\.)?(?:WorstRuns|TwoHumps|MomentumLag)",
    r"Trajectory\.(?:error|values)",
    r"torchlimits\.dynamics\.(?:stability\.classify|step_control\.StepControl)",
    r"Comparison\.worst_runs",
    r"torchlimits\.(?:dynamics\.fixed_points\.find|estimation\.conditions\.closability)",
    r"torchlimits\.(?:optim\.schedule|files\.row_file|ensemble\.shard)",
    "optimizer",
    "every",
    "fit",
    r"item\(\)",
    r"backward\(\)",
    r"table\(\)",
    "__call__",
]
nitpick_ignore_regex = [
    ("py:.*", r"\.?(torch|nn|numpy|copy|lightning|transformers|jaxtyping)\..*"),
    ("py:class", r"(?!torchlimits\b).*"),  # types of attributes
    # named for whoever reads the source: they have no page of their own
    ("py:.*", rf"\.?({'|'.join(WITHOUT_A_PAGE)})"),
]


def plain(app, what, name, obj, options, lines):
    """Make links of names in backticks, and let ``|x|`` be an absolute value, as for help()."""
    example = False
    for i, line in enumerate(lines):
        example = bool(line.strip()) and (example or line.lstrip().startswith(">>>"))
        if not example:
            parts = re.split(r"((?::[\w:]+:)?`+[^`]+`+)", line)
            parts[::2] = [re.sub(r"(?<!\\)(\||\*(?=\w)|(?<=\w)\*)", r"\\\1", x) for x in parts[::2]]
            lines[i] = "".join(re.sub(r"^`(tl\.)?([\w.]+)`$", linked, one) for one in parts)


def linked(found):
    """Return the role for a name, which may be that of any object with this ending."""
    name = found[0][1:-1]
    return f":py:obj:`{name} <torchlimits.{found[2]}>`" if found[1] else f":py:obj:`.{name}`"


def setup(app):
    """Register what is done to docstrings."""
    app.connect("autodoc-process-docstring", plain)
