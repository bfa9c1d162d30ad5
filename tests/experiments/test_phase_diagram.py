"""Phase diagrams against closed forms, and what the corrector does in them."""

from functools import partial

import pytest
import torch

import torchlimits as tl
from torchlimits.experiments.phase_diagram import representatives

MATRIX = partial(tl.SpikedTensor, dim=100, order=2)
BINARY = partial(tl.GaussianMixture.binary, dim=100)


def test_matrix_pca_has_its_threshold_at_the_step_size():
    """Stable points with m != 0 exactly where snr > c; accuracy sqrt(1 - c/snr)."""
    snrs, steps = [0.3, 0.9, 1.6, 2.4], [0.0, 0.5, 1.0, 2.0]
    diagram = tl.phase_diagram(MATRIX, ("snr", snrs), ("step_size", steps))
    snr, c = torch.tensor(snrs).double()[None], torch.tensor(steps).double()[:, None]
    expected = (1 - c / snr).clamp_min(0).sqrt()
    torch.testing.assert_close(diagram.accuracy, expected)
    assert torch.equal(diagram.count("stable"), torch.where(snr > c, 2, 1))
    # x = 0 and, apart from gradient flow, the equator beside the pair
    assert torch.equal(diagram.count(), torch.where(snr > c, torch.where(c > 0, 4, 3), 2))


def test_closed_forms_and_numbers_draw_the_same_diagram():
    """A negligible ridge takes the numerical way."""
    axes = ("snr", [0.5, 4.0, 8.0]), ("step_size", [0.4, 1.0])
    tensor = partial(tl.SpikedTensor, dim=100, order=3)
    exact = tl.phase_diagram(tensor, *axes)
    numbers = tl.phase_diagram(partial(tensor, ridge=1e-9), *axes)
    for kind in ("stable", "unstable"):
        assert torch.equal(exact.count(kind), numbers.count(kind))
    torch.testing.assert_close(exact.accuracy, numbers.accuracy, atol=1e-6, rtol=0)
    assert exact.count("stable").tolist() == [[1, 2, 2], [1, 2, 2]]


@pytest.mark.slow
def test_the_corrector_costs_accuracy_in_the_binary_mixture():
    sgd = tl.phase_diagram(
        partial(BINARY, ridge=0.05), ("snr", [0.5, 50.0]), ("step_size", [0.0, 6.0])
    )
    flow, critical = sgd.accuracy
    assert float(flow[0] - critical[0]) > 0.05
    assert abs(float(flow[1] - critical[1])) < 1e-3
    assert bool((sgd.count("stable") >= 1).all())


@pytest.mark.slow
def test_alpha_and_snr():
    """Above alpha = 1/4 only 0 is left, a guess; the axes may have either order."""
    x, y = ("ridge", [0.1, 0.3]), ("snr", [20.0, 200.0])
    diagram = tl.phase_diagram(BINARY, x, y)
    assert diagram.count("stable")[:, 1].tolist() == [1, 1]
    torch.testing.assert_close(diagram.accuracy[:, 1], torch.full((2,), 0.5).double())
    assert float(diagram.accuracy[:, 0].min()) > 0.99
    other = tl.phase_diagram(BINARY, y, x)
    torch.testing.assert_close(other.accuracy, diagram.accuracy.mT)
    assert "2 x 2 cells" in repr(diagram)


def test_zero_is_a_saddle_for_small_ridges_and_attracts_for_large_ones():
    """At finite snr too, where -f + g is not differentiable there; against the ODE."""
    for ridge, kind in ((0.05, "unstable"), (0.4, "stable")):
        problem = BINARY(snr=10.0, ridge=ridge)
        dynamics = problem.dynamics(step_size=1.0)
        (zero,) = [
            p for p in dynamics.fixed_points(representatives(problem), flow=0)
            if float(p.u.abs().max()) < 1e-6
        ]  # fmt: skip
        assert zero.kind == kind
        v, m = torch.tensor([0.01, -0.01]).double(), torch.tensor([[0.01], [-0.01]]).double()
        start = dynamics.join(v, m, torch.zeros(2, 2).double())
        moved = dynamics.solve(start, [0.0, 5.0]).final.norm() / start.norm()
        assert (float(moved) > 1) is (kind == "unstable")


@pytest.mark.slow
def test_neighbouring_cells_have_the_same_points():
    """Binary, K = 2: 0, one neuron idle, both on one mean, one on each, for any c and snr."""
    axes = ("snr", [0.6, 2.0, 15.0]), ("step_size", [0.0, 0.5, 8.0])
    diagram = tl.phase_diagram(partial(BINARY, ridge=0.05), *axes)
    assert torch.equal(diagram.count(), torch.full((3, 3), 4))
    assert torch.equal(diagram.count("unstable"), torch.full((3, 3), 2))
    # without the corrector both on one mean is a whole arc; with it one point, where it shows
    assert diagram.count("marginal")[0].tolist() == [1, 1, 1]
    assert diagram.count("marginal")[1:, :2].sum() == 0


@pytest.mark.slow
def test_points_are_counted_up_to_symmetry():
    """Random starts find points that permutations turn into each other: they count once."""
    problem = BINARY(snr=3.0, ridge=0.05)
    plain = problem.dynamics(step_size=4.0).fixed_points(count=15)
    assert len(plain) > 4
    diagram = tl.phase_diagram(partial(BINARY, ridge=0.05), ("snr", [3.0]), ("step_size", [4.0]),
                               count=15)  # fmt: skip
    assert int(diagram.count()) == 4


def test_representatives():
    """Binary, K = 2, up to symmetry: 0, one neuron idle, both on one mean, one on each."""
    assert len(representatives(BINARY(snr=10.0, ridge=0.1))) == 4
    xor = tl.GaussianMixture.xor(dim=100, snr=10.0, ridge=0.05)
    assert len(representatives(xor)) == 17
    assert len(representatives(xor, idle=False)) < 12
    # every component is one of them, after symmetries: compare what symmetries leave as it is
    dynamics = xor.small_noise().dynamics(step_size=1.0)

    def invariant(u):
        v, m, _ = dynamics.split(u)
        return round(float((v**4).sum()), 6), round(float(m.abs().sum()), 6)

    known = {invariant(u) for u in representatives(xor)}
    components = xor.small_noise().fixed_point_components()
    assert {invariant(c.point()) for c in components} == known


def test_accuracy_of_a_mixture_against_data():
    problem = tl.GaussianMixture.xor(dim=60, snr=3.0, dtype=torch.float64)
    model = problem.model(generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        model.first.weight.mul_(4)
        x, y = problem.sample(200_000, generator=torch.Generator().manual_seed(8))
        right = ((model(x) > 0) == (y > 0.5)).double()
        u = problem.statistics(dict(model.named_parameters()))
    assert abs(float(problem.accuracy(u)) - float(right.mean())) < 4 * 0.5 / 200_000**0.5 + 1e-3
    best = next(c for c in XOR_LIMIT.fixed_point_components() if c.stable)
    assert float(XOR_LIMIT.accuracy(best.point())) == 1
    assert float(XOR_LIMIT.accuracy(torch.zeros(22))) == 0.5


XOR_LIMIT = tl.GaussianMixture.xor(dim=60, snr=3.0, ridge=0.1).small_noise()


def test_accuracy_of_a_spike():
    problem = MATRIX(snr=1.0)
    u = torch.tensor([[3.0, 16.0], [-1.0, 0.0], [0.0, 0.0]]).double()
    torch.testing.assert_close(problem.accuracy(u), torch.tensor([0.6, 1.0, 0.0]).double())


def test_drawing():
    from matplotlib.figure import Figure

    diagram = tl.phase_diagram(MATRIX, ("snr", [0.1, 1.0, 10.0]), ("step_size", [0.5, 1.0]))
    axes = Figure().subplots()
    mesh = diagram.draw(axes, "stable")
    assert mesh.get_array().tolist() == diagram.count("stable").tolist()
    assert axes.get_xscale() == "log"
    assert axes.get_yscale() == "linear"
    assert "snr" in axes.get_xlabel()
    with pytest.raises(ValueError, match="accuracy"):
        diagram.draw(axes, "colour")


class Own:
    """Matrix PCA as somebody else would write it: no closed forms, no accuracy, no starts."""

    def __init__(self, *, strength):
        self.spiked = MATRIX(snr=strength)
        self.names, self.dim, self.statistics = ["m", "r2"], 100, self.spiked.statistics
        self.model, self.sample, self.loss = self.spiked.model, self.spiked.sample, self.spiked.loss

    def dynamics(self, *, step_size):
        return self.spiked.dynamics(step_size=step_size)


@pytest.mark.slow
def test_a_problem_of_ones_own():
    """Its attractors are those of the closed forms."""
    values, steps = [0.4, 1.6], ("step_size", [0.5, 2.0])
    diagram = tl.phase_diagram(Own, ("strength", values), steps)
    known = tl.phase_diagram(MATRIX, ("snr", values), steps)
    assert torch.equal(diagram.count("stable"), known.count("stable"))
    assert diagram.count("stable").tolist() == [[1, 2], [1, 1]]
    assert bool(diagram.accuracy.isnan().all())
    assert "accuracy" not in repr(diagram)


def test_what_is_no_problem():
    with pytest.raises(TypeError, match="got Linear, which has no dynamics, model, statistics"):
        tl.phase_diagram(lambda snr: torch.nn.Linear(1, 1), ("snr", [1.0]), ("step_size", [1.0]))


def test_a_problem_of_ones_own_that_lacks_something():
    class Single(Own):
        def __init__(self, *, strength):
            super().__init__(strength=strength)
            self.model = lambda: self.spiked.model()

    class Bare(Own):
        def dynamics(self, *, step_size):
            return None

    class OneModel(Own):
        def __init__(self, *, strength):
            super().__init__(strength=strength)
            self.statistics = tl.SummaryStatistics({"m": lambda p: p["x"].sum()})

    for make, error, message in (
        (Single, TypeError, r"expected Single.model\(replicas=..., generator=...\)"),
        (Bare, TypeError, r"to return tl.EffectiveDynamics, got NoneType"),
        (OneModel, ValueError, r"expected statistics of 32 models, \(32, k\), got \(1,\)"),
    ):
        with pytest.raises(error, match=message):
            tl.phase_diagram(make, ("strength", [2.0]), ("step_size", [1.0]))


def test_what_is_no_function_or_no_axis():
    y = ("step_size", [1.0])
    with pytest.raises(TypeError, match=r"expected make as a function .* got NoneType"):
        tl.phase_diagram(None, ("snr", [1.0]), y)
    for x in (None, ("snr", 1.0), ("snr",), [1.0, [2.0]]):
        with pytest.raises(TypeError, match=r"expected x as a name and its values"):
            tl.phase_diagram(MATRIX, x, y)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (("lambda", [1.0]), ("step_size", [1.0]), "name one of"),
        (("snr", []), ("step_size", [1.0]), "increasing values"),
        (("snr", [2.0, 1.0]), ("step_size", [1.0]), "increasing values"),
        (("snr", [1.0]), ("snr", [1.0]), "two different"),
        (("snr", [-1.0]), ("step_size", [1.0]), "snr"),
    ],
)
def test_bad_axes(x, y, message):
    with pytest.raises(ValueError, match=message):
        tl.phase_diagram(MATRIX, x, y)
