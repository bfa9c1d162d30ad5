"""`EmpiricalDynamics` against the closed forms, and against SGD where there are none."""

import dataclasses

import pytest
import torch
from scipy.stats import norm, ttest_1samp, ttest_ind
from torch.nn import functional as F

import torchlimits as tl

#: of a test: the chance that it fails although everything is right, all its entries together
LEVEL = 1e-3


@pytest.fixture(autouse=True)
def _one_thread():
    """A second one costs more than it saves on small matrices, where the machine is shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def mixture(kind, dim=1000, snr=2.0, ridge=0.1):
    make = {"binary": tl.GaussianMixture.binary, "xor": tl.GaussianMixture.xor}[kind]
    problem = make(dim, snr=snr, ridge=ridge)
    model = problem.model(generator=generator(3))
    return problem, model, measured(problem, model)


def measured(problem, model):
    return problem.statistics(dict(model.named_parameters())).detach().double()


def empirical(problem, model, **options):
    # errors and looks at closability have tests of their own
    plain = {"blocks": 0, "places": 0}
    options = {
        "step_size": 1.5, "samples": 4000, "weight_decay": problem.ridge, **plain, **options
    }  # fmt: skip
    return tl.EmpiricalDynamics(
        model, problem.loss, problem.sample, problem.statistics, dim=problem.dim, **options
    )


def agree(found, error, expected):
    """Two-sided z tests of all entries together; exact where there is no error."""
    moving = error > 0
    assert torch.equal(found[~moving], expected[~moving])
    z = (found - expected)[moving].abs() / error[moving]
    return float(z.max()) < norm.isf(LEVEL / 2 / z.numel())


@pytest.mark.parametrize("kind", ["binary", "xor"])
def test_right_hand_side_and_diffusion_are_the_closed_forms(kind):
    problem, model, u = mixture(kind)
    dynamics, closed = empirical(problem, model), problem.dynamics(step_size=1.5)
    e, N = dynamics.estimate(u), problem.dim
    torch.testing.assert_close(dynamics.drift(u), e.drift.value)
    torch.testing.assert_close(dynamics.corrector(u), e.corrector.value)
    torch.testing.assert_close(dynamics.diffusion(u), N * e.increment_covariance.value)
    assert agree(dynamics.drift(u), e.drift.standard_error, closed.drift(u))
    assert agree(dynamics.corrector(u), e.corrector.standard_error, closed.corrector(u))
    error = N * e.increment_covariance.standard_error
    assert agree(dynamics.diffusion(u), error, closed.diffusion(u))
    torch.testing.assert_close(dynamics(0.0, u), dynamics.drift(u) + dynamics.corrector(u))
    # negative controls: half a corrector, and a covariance without the second order in R
    assert not agree(e.corrector.value, e.corrector.standard_error, closed.corrector(u) / 2)
    assert not agree(N * e.diffusion.value, error, closed.diffusion(u))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["binary", pytest.param("xor", marks=pytest.mark.slow)])
def test_solutions_of_several_seeds_scatter_about_the_closed_form(kind):
    problem, model, u = mixture(kind)
    times = [0.0, 1.0, 2.0]
    found = torch.stack(
        [empirical(problem, model, seed=seed).solve(u, times).values[1:] for seed in range(8)]
    )
    closed = problem.dynamics(step_size=1.5)
    p = ttest_1samp(found, closed.solve(u, times).values[1:]).pvalue
    assert p.min() * p.size > LEVEL
    # negative control: the corrector left out
    without = closed.solve(u, times, corrector=False).values[1:]
    assert ttest_1samp(found, without).pvalue.min() * p.size < 1e-3 * LEVEL


# --- networks and losses of which no closed form is known -----------------------------------------


class Custom(tl.GaussianMixture):
    """The binary mixture for another activation and another loss of output and label +-1."""

    activation = staticmethod(torch.tanh)

    def model(self, **options):
        model = super().model(**options)
        model.activation = self.activation
        return model


class Gelu(Custom):
    activation = staticmethod(F.gelu)


class Squared(Custom):
    def loss(self, output, target):
        return (output - (2 * target - 1)).square().sum() / 2 / target.shape[-1]


class Hinge(Custom):
    def loss(self, output, target):
        return (1 - output * (2 * target - 1)).relu().sum() / target.shape[-1]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Custom, {}),
        pytest.param(Gelu, {}, marks=pytest.mark.slow),
        pytest.param(Squared, {}, marks=pytest.mark.slow),
        pytest.param(Hinge, {}, marks=pytest.mark.slow),
        pytest.param(Hinge, {"momentum": 0.5, "batch_size": 3}, marks=pytest.mark.slow),
    ],
)
def test_the_mean_of_sgd_is_predicted(kind, options):
    """60 runs from one start, N = 800, against 8 seeds of the prediction: Welch's tests."""
    problem = kind.binary(800, snr=1.0, ridge=0.1)
    start = problem.model(generator=generator(3))
    c, time = 2.0, 2.0
    runs = tl.train(
        problem, step_size=c, time=time, runs=60, seed=1, every=400, start=start, progress=False,
        **options,
    ).values[:, 1:]  # fmt: skip
    times = [0.0, time / 2, time]

    def predicted(**how):
        solutions = [
            empirical(problem, start, step_size=c, seed=seed, samples=2000, **options).solve(
                measured(problem, start), times, **how
            )
            for seed in range(8)
        ]
        return torch.stack([s.values[1:] for s in solutions])

    p = ttest_ind(runs, predicted(), equal_var=False).pvalue
    assert p.min() * p.size > LEVEL
    # negative control: the corrector left out
    p = ttest_ind(runs, predicted(corrector=False), equal_var=False).pvalue
    assert p.min() * p.size < 1e-3 * LEVEL


def test_a_lift_of_ones_own():
    """Statistics that are plain functions: of a spiked tensor, with x in the plane of v and e_2."""
    problem = tl.SpikedTensor(1000, order=3, snr=3.0)
    model, closed = problem.model(), problem.dynamics(step_size=0.5)

    def lift(u):
        x = torch.zeros(problem.dim)
        x[0], x[1] = u[0], u[1].clamp_min(0).sqrt()
        return {"x": x}

    u, times = torch.tensor([0.9, 0.6]).double(), [0.0, 0.1, 0.2]
    dynamics = [
        empirical(problem, model, step_size=0.5, samples=300, seed=seed, lift=lift)
        for seed in range(8)
    ]
    found = torch.stack([d.solve(u, times).values[1:] for d in dynamics])
    p = ttest_1samp(found, closed.solve(u, times).values[1:]).pvalue
    assert p.min() * p.size > LEVEL
    without = closed.solve(u, times, corrector=False).values[1:]
    assert ttest_1samp(found, without).pvalue.min() * p.size < 1e-3 * LEVEL


# --- derivatives ----------------------------------------------------------------------------------


@pytest.mark.parametrize("R", [[1.0, 0.1, 1.0], [0.02, -0.01, 0.02]], ids=["inside", "at the edge"])
def test_jacobian(R):
    problem, model, _ = mixture("binary", dim=300)
    closed = problem.dynamics(step_size=1.5)
    u = torch.tensor([1.0, -0.9, 1.0, -0.9, *R]).double()
    dynamics = [empirical(problem, model, seed=seed, samples=2000) for seed in range(8)]
    found = torch.stack([d.jacobian(u[None])[0] for d in dynamics])
    h = 0.05 * 2.0 * torch.eye(7).double()
    # the closed form by the same differences, as far as R >= 0
    ahead, behind = (closed.geometry.project(x) for x in (u + h, u - h))
    expected = torch.linalg.solve(ahead - behind, closed(0.0, ahead) - closed(0.0, behind)).mT
    p = ttest_1samp(found, expected).pvalue
    assert p.min() * p.size > LEVEL
    # which are derivatives up to the curvature, d^3 f h^2 / 6, f varying on the scale 1
    exact = closed.jacobian(u[None])[0]
    assert float((expected - exact).abs().max()) < 0.05
    # negative control: without the corrector, which is quadratic in v
    plain = problem.dynamics(step_size=0.0).jacobian(u[None])[0]
    assert ttest_1samp(found, plain).pvalue.min() * p.size < 1e-3 * LEVEL


def test_derivatives_by_autograd_are_refused():
    problem, model, u = mixture("binary", dim=50)
    dynamics = empirical(problem, model, samples=50)
    for derivative in (
        lambda: dynamics.drift(u.clone().requires_grad_()),
        lambda: torch.func.jacrev(dynamics.drift)(u),
        lambda: torch.func.jacfwd(dynamics.corrector)(u),
        lambda: torch.func.jvp(lambda u: dynamics(0.0, u), (u,), (u,)),
    ):
        with pytest.raises(ValueError, match=r"use dynamics.jacobian\(u\)"):
            derivative()
    with torch.no_grad():
        dynamics.drift(u.clone().requires_grad_())


@pytest.mark.slow
def test_a_fixed_point():
    """Near that of the closed form, and stable like it."""
    problem, model, _ = mixture("binary", dim=300)
    closed = problem.dynamics(step_size=1.5)
    start = torch.tensor([1.0, -1.0, 1.0, -1.0, 0.1, 0.0, 0.1]).double()[None]
    expected = closed.fixed_points(start)[0]
    found = empirical(problem, model, samples=20_000).fixed_points(start, flow=0.0)[0]
    assert expected.stable
    assert found.stable
    # an error of 3/sqrt(samples) in the right-hand side, over rates of 0.2 and more
    assert float((found.u - expected.u).abs().max()) < 3 / 20_000**0.5 / 0.2


# --- the optimizer, batches, seeds ----------------------------------------------------------------


def test_the_optimizers_factors():
    problem, model, u = mixture("binary", dim=100)
    plain = empirical(problem, model, step_size=1.0, samples=500)
    other = empirical(problem, model, step_size=3.0, samples=500, momentum=0.5, batch_size=4)
    torch.testing.assert_close(other.drift(u), 2 * plain.drift(u))
    torch.testing.assert_close(other.corrector(u), 3.0 * 4 / 4 * plain.corrector(u))
    torch.testing.assert_close(other(0.0, u), other.drift(u) + other.corrector(u))
    # v and m move in the first order only
    factor = 3.0 * 4 / 4
    linear = plain.diffusion(u)[:4, :4]
    torch.testing.assert_close(other.diffusion(u)[:4, :4], factor * linear, rtol=1e-5, atol=1e-7)
    flow = empirical(problem, model, step_size=0.0, samples=500)
    torch.testing.assert_close(flow.drift(u), plain.drift(u))
    assert not bool(flow.corrector(u).any())
    assert not bool(flow.diffusion(u).any())


def test_batches_of_points():
    problem, model, u = mixture("xor", dim=60)
    dynamics = empirical(problem, model, samples=200)
    points = torch.stack([u, 1.1 * u, 0.9 * u, u]).unflatten(0, (2, 2))
    for f in (dynamics.drift, dynamics.corrector, dynamics.diffusion):
        whole = f(points)
        assert torch.equal(whole[0, 0], f(u))
        assert torch.equal(whole[0, 1], f(1.1 * u))
        assert whole.dtype == torch.float64
    assert dynamics.drift(u.float()).dtype == torch.float32
    assert dynamics.solve(points, [0.0, 0.1]).values.shape == (2, 2, 2, 22)


def test_seeds_and_what_is_left_alone():
    problem, model, u = mixture("binary", dim=60)
    before, state = [p.detach().clone() for p in model.parameters()], torch.get_rng_state()

    def solve(seed):
        return empirical(problem, model, samples=300, seed=seed).solve(u, [0.0, 1.0]).values

    assert torch.equal(solve(1), solve(1))
    assert not torch.equal(solve(1), solve(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert all(p.grad is None for p in model.parameters())
    # one function of u, whatever was asked before
    dynamics = empirical(problem, model, samples=300)
    first = dynamics.drift(u)
    dynamics.solve(0.5 * u, [0.0, 0.5])
    assert torch.equal(dynamics.drift(u), first)


def test_every_sample_counts_once():
    """300 samples: those of the first pieces and the rest, as in an estimate with the same ones."""
    problem, model, u = mixture("binary", dim=60)
    x, y = problem.sample(300, generator=generator())
    dynamics = tl.EmpiricalDynamics(
        model, problem.loss, lambda batch, generator: (x[:batch], y[:batch]), problem.statistics,
        step_size=1.0, dim=60, samples=300,
    )  # fmt: skip
    model.load_state_dict(dynamics.lift(u))
    done = iter([slice(0, 128), slice(128, 300)])

    def in_order(batch, generator):
        rows = next(done)
        assert batch == rows.stop - rows.start
        return x[rows], y[rows]

    expected = tl.estimate(
        model, problem.loss, in_order, problem.statistics, step_size=1 / 60, samples=300
    )
    torch.testing.assert_close(dynamics.drift(u), expected.drift.value)
    torch.testing.assert_close(dynamics.corrector(u), expected.corrector.value)


def test_metadata():
    problem, model, u = mixture("binary", dim=60)
    path = empirical(problem, model, samples=300).solve(u, [0.0, 1.0])
    assert "estimated from 300 samples" in path.metadata["equation"]
    assert path.metadata["parameters"]["weight_decay"] == problem.ridge
    assert path.steps.tolist() == [0, 40]
    assert path.names == problem.names


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"step_size": -1.0}, ValueError, "step_size"),
        ({"samples": 0}, ValueError, "samples"),
        ({"samples": 1}, ValueError, "at least 2 samples"),
        ({"dim": 2.5}, ValueError, "dim"),
        ({"momentum": 1.0}, ValueError, "momentum"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay"),
        ({"lift": 3}, TypeError, "lift as a function"),
        ({"lift": lambda u: {}}, ValueError, "return the parameters"),
        ({"lift": lambda u: {"first.weight": u, "second.weight": u}}, ValueError,
         "parameters of the model in their shapes"),
        ({"lift": lambda u: {"first.weight": u, "second.weight": u, "x": u}}, ValueError, "'x'"),
        ({"statistics": {"n": lambda p: p["first.weight"].norm()}}, ValueError,
         "lift of your own"),
        ({"sampler": lambda batch: 0}, TypeError, "generator"),
        ({"sampler": lambda batch, generator: torch.ones(3)}, ValueError, "return 50 samples"),
        ({"model": 3}, TypeError, "torch.nn.Module"),
        ({"u": torch.zeros(3).double()}, ValueError, "u of shape"),
        ({"u": torch.zeros(7).long()}, TypeError, "float32 or float64"),
        ({"u": torch.full((7,), torch.nan)}, ValueError, "finite"),
    ],
)  # fmt: skip
def test_bad_input(change, error, message):
    problem, model, u = mixture("binary", dim=60)
    options = {
        "model": model, "loss": problem.loss, "sampler": problem.sample, "u": u,
        "statistics": problem.statistics, "step_size": 1.0, "dim": 60, "samples": 50, **change,
    }  # fmt: skip
    u = options.pop("u")
    with pytest.raises(error, match=message):
        tl.EmpiricalDynamics(**options).drift(u)


def test_a_start_that_no_parameters_have():
    problem, model, u = mixture("binary", dim=60)
    u[4] = -0.5
    with pytest.raises(ValueError, match=r"start that parameters can have.* R\[0,0\]"):
        empirical(problem, model, samples=50).solve(u, [0.0, 1.0])


# --- what finitely many samples leave open --------------------------------------------------------


@pytest.mark.slow
def test_the_error_is_that_of_finitely_many_samples():
    """z of 4 seeds against the closed form; the corrector left out is many errors away."""
    problem, model, u = mixture("binary")
    closed, times = problem.dynamics(step_size=1.5), [0.0, 0.5, 1.0]
    right, wrong = (closed.solve(u, times, corrector=on).values[1:] for on in (True, False))
    z, far = [], []
    for seed in range(4):
        found = empirical(problem, model, samples=512, seed=seed, blocks=8).solve(u, times)
        assert not found.error[0].any()
        z.append((found.values[1:] - right) / found.error[1:])
        far.append((found.values[1:] - wrong) / found.error[1:])
    assert 0.5 < float(torch.stack(z).square().mean().sqrt()) < 1.7
    assert float(torch.stack(far).mean(0).abs().max()) > 8


def test_the_error_counts_in_bands_and_comparisons(tmp_path):
    problem, model, u = mixture("binary", dim=100)
    found = empirical(problem, model, samples=128, blocks=2).solve(u, [0.0, 0.5])
    found = dataclasses.replace(found, std=torch.full_like(found.values, 0.05))
    assert found.metadata["error"] == "standard error by 2 blocks of the samples"
    half = 1.96 * torch.hypot(found.std, found.error)
    torch.testing.assert_close(found.bounds[1], found.values + half)
    found.save(tmp_path / "u.npz")
    assert torch.equal(tl.Trajectory.load(tmp_path / "u.npz").error, found.error)
    runs = torch.stack([found.values + 0.1, found.values + 0.3])
    measured = tl.Trajectory(found.times, found.steps, runs, found.names)
    compared = tl.compare(measured, found)
    spread = torch.full((7,), 0.1, dtype=torch.float64)
    torch.testing.assert_close(compared.standard_error, spread)
    at = compared.sup_time == 0.5
    torch.testing.assert_close(
        compared.sup_standard_error[at], torch.hypot(spread, found.error[-1])[at]
    )
    assert "± standard error" in str(compared)
    one = tl.compare(measured.run(0), found)
    torch.testing.assert_close(one.predicted_error, found.error[-1])
    assert f"{found.final[0]:.4f} ± {found.error[-1, 0]:.4f}" in str(one)
    exact = tl.compare(measured.run(0), problem.dynamics(step_size=1.5).solve(u, [0.0, 0.5]))
    assert exact.predicted_error is None
    assert "±" not in str(exact)


def test_an_error_that_is_not_known_is_said_to_be_so():
    problem, model, u = mixture("binary", dim=100)
    for options, why in (({"blocks": 0}, "not asked for"), ({"blocks": 8}, "from 40 samples")):
        found = empirical(problem, model, samples=40, **options).solve(u, [0.0, 0.1])
        assert found.error is None
        assert why in found.metadata["error"]
    for name, value in (("blocks", 1), ("places", 2), ("blocks", 2.0)):
        with pytest.raises(ValueError, match=f"expected {name} as 0 or an int >="):
            empirical(problem, model, **{name: value})


def test_statistics_that_do_not_close_are_told_and_others_are_not(recwarn):
    """Without the angle between the neurons, R is driven by what nobody knows."""
    problem, model, u = mixture("binary", dim=200)
    found = empirical(problem, model, samples=256, places=4).solve(u, [0.0, 0.2])
    assert found.metadata["closability"].startswith("a look at 4 parameters")
    assert not [one for one in recwarn if "close" in str(one.message)]
    e = torch.eye(1, 200)
    own = tl.SummaryStatistics({
        "v": tl.statistics.second_layer("second.weight"),
        "m": tl.statistics.overlaps("first.weight", e),
        "R": tl.statistics.squared_lengths("first.weight", e),
    })  # fmt: skip
    options = {"step_size": 1.5, "dim": 200, "samples": 1500, "blocks": 0}
    loose = tl.EmpiricalDynamics(model, problem.loss, problem.sample, own, **options)
    start = own(dict(model.named_parameters())).detach().double()
    with pytest.warns(
        UserWarning, match=r"the statistics do not close: .* in R\[\d\] at the start"
    ):
        found = loose.solve(start, [0.0, 0.2])
    assert found.metadata["closability"].startswith("the statistics do not close")
    lift = tl.Lift(model, problem.statistics)
    fixed = empirical(problem, model, samples=256, places=4, lift=lambda u: lift(u))
    assert "nobody has looked" in fixed.solve(u, [0.0, 0.2]).metadata["closability"]
