"""A problem that knows public names only is trained, predicted and examined like the package's."""

import ast
from functools import partial
from pathlib import Path

import outsider
import pytest
import torch
from outsider import Committee, Field
from scipy.stats import norm

import torchlimits as tl

N, RUNS = 400, 100
#: two-sided, of five statistics at twelve times
Z = norm.isf(0.001 / 2 / 60)


def code_lines(source):
    """Those that are neither blank nor comments nor docstrings."""
    documents = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node)
        for line in range(node.body[0].lineno, node.body[0].end_lineno + 1)
    }
    return [
        line
        for number, line in enumerate(source.splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#") and number not in documents
    ]


def test_it_is_short_and_knows_public_names_only():
    source = Path(outsider.__file__).read_text()
    assert len(code_lines(source)) <= 60
    tree = ast.parse(source)
    named = [n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)]
    named += [n.id for n in ast.walk(tree) if isinstance(n, ast.Name)]
    assert not [n for n in named if n.startswith("_") and not n.startswith("__")]
    imported = [
        name.name
        for n in ast.walk(tree)
        if isinstance(n, ast.Import | ast.ImportFrom)
        for name in n.names
    ]
    assert imported == ["math", "torch", "torchlimits"]


@pytest.fixture(scope="module")
def trained():
    problem = Committee(dim=N)
    start = problem.model(generator=torch.Generator().manual_seed(3))
    measured = tl.train(
        problem, step_size=2.0, time=3.0, runs=RUNS, seed=1, every=50, start=start, progress=False
    )
    return problem, measured


def misses(measured, predicted):
    """The largest difference over what is allowed: z standard errors, and O(1/n)."""
    found = tl.compare(measured, predicted)
    return float((found.sup_difference / (Z * found.sup_standard_error + 8 / N)).max())


def test_runs_follow_the_prediction_and_not_gradient_flow(trained):
    problem, measured = trained
    dynamics, u0 = problem.dynamics(step_size=2.0), measured.initial[0]
    assert misses(measured, dynamics.solve(u0, measured.times)) < 1
    assert misses(measured, dynamics.solve(u0, measured.times, corrector=False)) > 5


def test_the_spread_of_runs_is_the_band(trained, monkeypatch):
    """At the end, each statistic within 4 standard errors of a standard deviation."""
    problem, measured = trained
    u0, spread = measured.initial[0], measured.values[:, -1].std(0)

    def ratio():
        path = problem.dynamics(step_size=2.0).solve(u0, measured.times, band=True)
        return spread / path.std[-1]

    allowed = 4 / (2 * RUNS) ** 0.5
    assert float((ratio() - 1).abs().max()) < allowed
    # negative control: the increments' second order left out
    full = Field.increment_covariance
    monkeypatch.setattr(Field, "increment_covariance", lambda self, u, c: full(self, u, 0.0))
    assert float((ratio() - 1).abs().max()) > allowed


def test_a_fixed_point_is_where_runs_stay():
    """One unit, one teacher: the corrector holds Q above m^2, gradient flow would not."""
    c, problem = 0.5, Committee(dim=N, width=1, noise=0.3)
    dynamics = problem.dynamics(step_size=c)
    starts = torch.tensor([[0.5, 1.0], [1.0, 1.2]], dtype=torch.float64)
    (point,) = [p for p in dynamics.fixed_points(starts) if p.stable]
    m, Q = point.u.tolist()
    start = problem.model()
    weight = torch.zeros(1, N)
    weight[0, 0], weight[0, 1] = m, (Q - m**2) ** 0.5
    start.load_state_dict({"weight": weight})
    measured = tl.train(
        problem, step_size=c, time=4.0, runs=RUNS, seed=2, start=start, progress=False
    )
    error = measured.final.std(0) / RUNS**0.5
    off = (measured.final.mean(0) - point.u).abs()
    assert bool((off < 4 * error + 2 / N).all())
    flow = dynamics.solve(point.u, [0.0, 4.0], corrector=False).final
    assert bool(((flow - point.u).abs() > 4 * error + 2 / N).all())
    # the spread that it tends to
    variance = dynamics.diffusive(point.u).stationary_covariance().diagonal() / N
    assert float((measured.final.var(0) / variance).min()) > 0.5
    assert float((measured.final.var(0) / variance).max()) < 1.6


@pytest.mark.slow
def test_a_phase_diagram():
    make = partial(Committee, dim=100, width=1)
    diagram = tl.phase_diagram(make, ("noise", [0.1, 0.3]), ("step_size", [0.2, 0.5]), count=4)
    assert diagram.count("stable").tolist() == [[1, 1], [1, 1]]
    (at,) = [p for p in diagram.points[1][1] if p.stable]
    assert float(at.u[1]) == pytest.approx(1.106, abs=0.01)


def test_what_is_for_mixtures_only_says_so():
    problem = Committee(dim=20)
    with pytest.raises(TypeError, match=r"tl.GaussianMixture or tl.NetworkProblem, got Eff"):
        tl.basins(problem.dynamics(step_size=1.0), torch.zeros(1, 5))


def test_its_terms_are_those_of_one_step():
    """Drift and corrector against naive averages over data in the full space."""
    problem = Committee(dim=300)
    model = problem.model(generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    u = problem.statistics(dict(model.named_parameters())).detach()
    estimate = tl.estimate(
        model, problem.loss, partial(problem.sample, dtype=torch.float64), problem.statistics,
        step_size=1 / 300, samples=20_000,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    drift, corrector = problem.dynamics(step_size=1.0).field.terms(u)
    for found, expected in ((estimate.drift, drift), (estimate.corrector, corrector)):
        z = (found.value - expected).abs() / found.standard_error.clamp_min(1e-12)
        assert float(z[expected != 0].max()) < 4.5
