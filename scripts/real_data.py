"""Does the theory for Gaussian inputs hold for real data? Least squares by SGD over its prediction.

    python scripts/real_data.py                        # digits and image patches, 2 minutes
    python scripts/real_data.py --path data.npz        # yours: arrays x (M, N) and y (M,)
    python scripts/real_data.py --out scripts/reach_real_data.json --picture scripts/real_data.png

Digits are scikit-learn's 1,797 images, y = 1 for even numbers and -1 for odd ones; inputs are the
standardised pixels, or 1,000 random ReLU features of the pixels. Patches of 8 x 8 pixels of
scikit-learn's two photographs predict a pixel beside them. Two of its tables are standardised. Runs
of torch.optim.SGD draw rows with replacement, one a step, from w = 0; a Gaussian twin draws
Gaussian inputs of the same covariance. The mean of (<w, x> - y)^2 over the rows, over many runs, is
held against `tl.LinearModel` at ten times, with Gaussian and with measured fourth moments, and
stands under the verdict of `tl.Covariance.of_data(x, y).diagnose(lr, steps)`, which knows nothing
of the runs.

The script ends with an error unless the ReLU features at c = 0.2 are within 2 % at all ten times,
the patches with measured fourth moments within 3 %, the twins within 3 % or lr lambda_max (or three
standard errors), and pixels that diverge are said to before.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import reach
import torch
from torch import Tensor

import torchlimits as tl

#: recorded times after the start
TIMES = 10
#: side of a patch of a photograph, and how many
SIDE, PATCHES = 8, 3000


@dataclass(frozen=True)
class Case:
    """Data, c = lr N with inputs of mean square 1 an entry, and how the script judges them."""

    name: str
    x: Tensor
    y: Tensor
    step_size: float
    steps: int
    runs: int = 100
    twin: bool = False
    within: float | None = None
    fourth_within: float | None = None
    diverges: bool = False
    drawn: bool = True


def datasets() -> Any:
    """The module sklearn.datasets, or an error that says what to install."""
    try:
        from sklearn import datasets
    except ImportError:
        sys.exit("expected scikit-learn: pip install -e '.[examples]', or give --path data.npz")
    return datasets


def standard(x: Tensor) -> Tensor:
    """Columns that vary, with mean 0 and standard deviation 1."""
    x = x[:, x.std(0) > 1e-3 * x.abs().amax(0)]
    return (x - x.mean(0)) / x.std(0, correction=0)


def digits() -> tuple[Tensor, Tensor]:
    """Pixels between 0 and 1, and the parity as 1 and -1."""
    x, y = datasets().load_digits(return_X_y=True)
    return torch.from_numpy(x / 16), torch.from_numpy(1.0 - 2 * (y % 2))


def relu_features(x: Tensor, width: int = 1000) -> Tensor:
    """relu(<a, x>) with random a, standardised."""
    a = torch.randn(x.shape[1], width, generator=torch.Generator().manual_seed(0)).double()
    return standard(((x - x.mean(0)) @ a).relu())


def patches() -> tuple[Tensor, Tensor]:
    """Patches of photographs less their mean, and the pixel beside the middle of the right edge."""
    photos = [datasets().load_sample_image(f"{n}.jpg").mean(2) / 255 for n in ("china", "flower")]
    rng = np.random.default_rng(0)
    found = []
    for _ in range(PATCHES):
        photo = photos[rng.integers(2)]
        i, j = (rng.integers(n - SIDE - 1) for n in photo.shape)
        found.append(photo[i : i + SIDE, j : j + SIDE + 1])
    cut = torch.from_numpy(np.array(found))
    x, y = cut[:, :, :SIDE].flatten(1), cut[:, SIDE // 2, SIDE]
    mean = x.mean(1)
    # with its mean taken off, one pixel of a patch is known from the others
    x, y = (x - mean[:, None])[:, :-1], y - mean
    x, y = x - x.mean(0), y - y.mean()
    return x / x.square().mean().sqrt(), y / y.std(correction=0)


def table(name: str) -> tuple[Tensor, Tensor]:
    """One of scikit-learn's tables, standardised."""
    x, y = getattr(datasets(), f"load_{name}")(return_X_y=True)
    y = torch.from_numpy(y).double()
    return standard(torch.from_numpy(x)), (y - y.mean()) / y.std(correction=0)


def cases() -> list[Case]:
    """What the script looks at, sizes and seeds fixed beforehand."""
    x, y = digits()
    features, pixels = relu_features(x), standard(x)
    patch, beside = patches()
    relu = "1,000 ReLU features"
    return [
        Case(f"{relu}, c = 0.2", features, y, 0.2, 6000, runs=200, within=0.02),
        Case(f"{relu}, c = 0.8", features, y, 0.8, 6000, runs=200),
        Case(f"{relu}, Gaussian twin, c = 0.8", features, y, 0.8, 6000, 20, twin=True, drawn=False),
        Case("pixels, c = 0.02", pixels, y, 0.02, 3600),
        Case("pixels, c = 0.2", pixels, y, 0.2, 3600, diverges=True),
        Case("pixels, c = 0.8", pixels, y, 0.8, 3600, diverges=True),
        Case("pixels, Gaussian twin, c = 0.2", pixels, y, 0.2, 3600, twin=True),
        Case("pixels, Gaussian twin, c = 0.8", pixels, y, 0.8, 3600, twin=True, drawn=False),
        Case("patches, c = 0.05", patch, beside, 0.05, 3000, runs=400, fourth_within=0.03),
        Case("patches, c = 0.1", patch, beside, 0.1, 3000, runs=400, fourth_within=0.03),
        Case("breast cancer, c = 0.1", *table("breast_cancer"), 0.1, 2000, drawn=False),
        Case("breast cancer, c = 0.2", *table("breast_cancer"), 0.2, 2000, drawn=False),
        Case("diabetes, c = 0.1", *table("diabetes"), 0.1, 2000, drawn=False),
    ]


def own(path: Path, step_size: float, steps: int) -> list[Case]:
    """Arrays x and y of a file, x less its mean."""
    with np.load(path) as file:
        x, y = (torch.from_numpy(file[name]).double() for name in ("x", "y"))
    x = (x - x.mean(0)).flatten(1)
    return [Case(f"{path.name}, c = {step_size:g}", x, y, step_size, steps)]


def trained(case: Case, data: Any) -> Callable[[], tuple[Tensor, Tensor]]:
    """Draw a batch of inputs and labels, one for each run."""
    generator = torch.Generator().manual_seed(1)
    if case.twin:
        problem = model_of(data, False)
        return lambda: problem.sample(case.runs, generator=generator)
    x, y = data.moments.coordinates.float(), case.y.float()

    def rows() -> tuple[Tensor, Tensor]:
        drawn = torch.randint(len(x), (case.runs,), generator=generator)
        return x[drawn], y[drawn]

    return rows


def model_of(data: Any, fourth: bool) -> tl.LinearModel:
    """The model of the data in their eigenbasis, in which nothing has to be turned."""
    return tl.LinearModel(
        data.dim, covariance=data.eigenvalues[0], noise=data.residual,
        target=data.coordinates(data.target),
        fourth_moments=data.fourth_moments() if fourth else False,
    )  # fmt: skip


def measured(case: Case, data: Any, lr: float) -> tuple[Tensor, Tensor]:
    """The mean over runs of E (<w, x> - y)^2 at the recorded times, and its standard error."""
    weights = torch.nn.Parameter(torch.zeros(case.runs, data.dim))
    optimizer = torch.optim.SGD([weights], lr=lr)
    draw = trained(case, data)
    target = data.coordinates(data.target).float()
    values = data.eigenvalues[0].float()
    found = []
    for step in range(1, case.steps + 1):
        x, y = draw()
        optimizer.zero_grad()
        ((weights * x).sum(1) - y).square().sum().div(2).backward()
        optimizer.step()
        if step % (case.steps // TIMES) == 0:
            error = (weights.detach() - target).double()
            found.append(data.residual**2 + error.square() @ values.double())
    risks = torch.stack(found, 1)
    return risks.mean(0), risks.std(0) / case.runs**0.5


def predicted(case: Case, data: Any, c: float, fourth: bool) -> Tensor:
    """2 risk at the recorded times, by the effective dynamics."""
    problem = model_of(data, fourth)
    times = torch.arange(TIMES + 1).double() * (case.steps // TIMES) * c / data.dim
    path = problem.dynamics(step_size=c).solve(problem.initial, times)
    return 2 * problem.risk(path.values)[1:]


def figures_of(case: Case) -> dict[str, Any]:
    """Everything about one case, in numbers."""
    data = tl.Covariance.of_data(case.x, case.y)
    # c is for inputs whose entries have the mean square 1
    lr = case.step_size / data.trace
    report = data.diagnose(lr=lr, steps=case.steps)
    verdict = "(twin)" if case.twin else report.verdict
    theory = predicted(case, data, lr * data.dim, False)
    measured_risk, error = measured(case, data, lr)
    found: dict[str, Any] = {
        "rows": len(case.x), "N": data.dim, "lr": lr, "steps": case.steps, "runs": case.runs,
        "verdict": verdict, "sentence": "" if case.twin else report.sentence,
        "findings": {f.name: [f.value, f.reference] for f in report.findings},
        "step": [(k + 1) * (case.steps // TIMES) for k in range(TIMES)],
        "measured": measured_risk.tolist(), "standard error": error.tolist(),
        "predicted": theory.tolist(), "measured / predicted": (measured_risk / theory).tolist(),
    }  # fmt: skip
    ratios = {"Gaussian": measured_risk / theory}
    if not case.twin and not case.diverges:
        fourth = predicted(case, data, lr * data.dim, True)
        found["predicted with fourth moments"] = fourth.tolist()
        ratios["fourth moments"] = measured_risk / fourth
    for name, ratio in ratios.items():
        z = (ratio - 1).abs() / (ratio * error / measured_risk)
        found[name] = {
            "largest |ratio - 1|": float((ratio - 1).abs().max()), "largest z": float(z.max())
        }  # fmt: skip
    return found


def faults(case: Case, found: dict[str, Any]) -> list[str]:
    """What does not hold of a case."""
    wrong = []
    gaussian = found["Gaussian"]["largest |ratio - 1|"]
    if case.within is not None and gaussian > case.within:
        wrong.append(f"{case.name}: {100 * gaussian:.2g} % off")
    small = max(0.03, found["findings"]["lr lambda_max"][0])
    if case.twin and gaussian > small and found["Gaussian"]["largest z"] > 3:
        wrong.append(f"{case.name}: {100 * gaussian:.2g} % off")
    if case.fourth_within is not None:
        off = found["fourth moments"]["largest |ratio - 1|"]
        if off > case.fourth_within:
            wrong.append(f"{case.name}: {100 * off:.2g} % off with measured fourth moments")
    if case.diverges and (found["verdict"] != "fails" or gaussian < 1):
        wrong.append(f"{case.name}: {found['verdict']}, though the risk grows")
    return wrong


def row(name: str, found: dict[str, Any]) -> str:
    """A line of the table."""
    ratio, error = found["measured / predicted"], found["standard error"]
    off = found["Gaussian"]["largest |ratio - 1|"]
    fourth = found.get("fourth moments", {}).get("largest |ratio - 1|")
    repaired = "" if fourth is None else f"{100 * fourth:.2g} %"
    spread = error[-1] / found["predicted"][-1]
    return (
        f"{name:<40} {found['verdict']:<9} {ratio[-1]:>9.4g} ± {spread:<8.2g} "
        f"{f'{100 * off:.3g} %':>10} {repaired:>10}"
    )


def draw(figures: dict[str, dict[str, Any]], path: Path) -> None:
    """One panel a case: runs over their predictions, the verdict above."""
    from matplotlib.figure import Figure

    rows = -(-len(figures) // 3)
    figure = Figure(figsize=(9, 0.4 + 1.9 * rows), layout="constrained")
    panels = figure.subplots(rows, 3, squeeze=False).flatten()
    for axes in panels[len(figures) :]:
        axes.remove()
    for axes, (name, found) in zip(panels, figures.items(), strict=False):
        step, risk = found["step"], np.array(found["measured"])
        axes.errorbar(step, risk, found["standard error"], fmt=".", color="0.2", label="runs")
        axes.plot(step, found["predicted"], color="C0", label="Gaussian theory")
        if "predicted with fourth moments" in found:
            axes.plot(step, found["predicted with fourth moments"], "--", color="C1",
                      label="fourth moments")  # fmt: skip
        axes.set_title(f"{name}: {found['verdict']}".replace(": (twin)", ""), fontsize=8)
        axes.tick_params(labelsize=6)
        if risk.max() > 10 * max(found["predicted"]):
            axes.set_yscale("log")
        else:
            axes.set_ylim(0.9 * min(found["predicted"]), 1.2 * float(risk.max()))
    figure.axes[0].legend(fontsize=6)
    figure.supxlabel("step", fontsize=8)
    figure.supylabel("mean squared error on the rows", fontsize=8)
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = reach.parser(__doc__)
    parser.add_argument("--path", type=Path, help="an .npz file with x and y")
    parser.add_argument("--step-size", type=float, default=0.2, help="c, for --path (0.2)")
    parser.add_argument("--steps", type=int, default=3000, help="for --path (3000)")
    parser.add_argument("--picture", type=Path, help="where to draw the cases")
    options = parser.parse_args()
    # that learning rates are not small is among the findings
    warnings.filterwarnings("ignore", "expected lr times the largest eigenvalue")
    chosen = own(options.path, options.step_size, options.steps) if options.path else cases()
    figures, wrong = {}, []
    print(f"{'':<40} {'verdict':<9} {'measured / predicted':>20} {'at most off':>12} with fourth")
    for case in chosen:
        figures[case.name] = found = figures_of(case)
        wrong += faults(case, found)
        said = "\n    " + found["sentence"] if found["sentence"] else ""
        print(row(case.name, found) + said, flush=True)
    if options.picture:
        draw({case.name: figures[case.name] for case in chosen if case.drawn}, options.picture)
    if options.out:
        reach.keep({"cases": figures, "wrong": wrong}, options)
    if wrong:
        sys.exit("; ".join(wrong))


if __name__ == "__main__":
    main()
