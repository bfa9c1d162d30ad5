"""Components of other probabilities in the dynamics: against real SGD, formulas and repetitions.

A component that is given several times counts as one of that many times the probability: that says
what weights have to do in every formula, to rounding. Whatever compares with random numbers counts
some 300 of them, and must fail for equal weights and for the same weights of other components.
"""

import copy
import math
import pickle

import pytest
import torch
from real_sgd import misses, one_step

import torchlimits as tl

#: |z| of one of some 300 comparisons: a normal variable exceeds it once in 150,000 times
Z = 4.5

DIM = 400
E = torch.eye(3, DIM, dtype=torch.float64)
SHARES = {"binary": [0.8, 0.2], "xor": [0.5, 0.05, 0.4, 0.05]}
#: other weights: equal ones, and the same ones of other components
WRONG = {
    "binary": [None, [0.2, 0.8]],
    "xor": [None, [0.05, 0.5, 0.4, 0.05], [0.5, 0.05, 0.05, 0.4], [0.05, 0.4, 0.05, 0.5]],
}


def make(kind, weights="own", **options):
    weights = SHARES[kind] if weights == "own" else weights
    given = {"dim": DIM, "width": 2, "snr": 2.0, "ridge": 0.1, "dtype": torch.float64}
    return getattr(tl.GaussianMixture, kind)(weights=weights, **{**given, **options})


def of_means(means, labels, weights=None, **options):
    """A mixture of means along the first axes."""
    means = torch.as_tensor(means, dtype=torch.float64)
    given = {"width": 2, "snr": 2.0, "ridge": 0.1, "directions": E[: means.shape[1]], **options}
    return tl.GaussianMixture(means @ E[: means.shape[1]], labels, weights=weights, **given)


def a_start(problem):
    """A model with v and m of order 1, so that every component is seen and there is a corrector."""
    model = problem.model(generator=torch.Generator().manual_seed(3))
    K, d = problem.width, len(problem.directions)
    model.second.weight.data.copy_(torch.linspace(1.5, -1.0, K))
    model.first.weight.data.mul_(1.5)
    m = torch.tensor([[0.7, -0.4], [-0.3, 0.6]], dtype=torch.float64)
    model.first.weight.data[:, :d] = m[:K, :d]
    return model


def u_of(problem, model):
    return problem.statistics({n: p.detach() for n, p in model.named_parameters()})


def points_of(dynamics, count=4):
    """Points of order 1, the last of them with parallel neurons and R = 0."""
    u = dynamics.geometry.starts(dynamics, count, torch.Generator().manual_seed(4))
    v, m, R = (x.clone() for x in dynamics.split(u))
    m[-1], R[-1] = m[-1, :1], 0.0
    return dynamics.join(v, m, R)


# --- one step of real SGD -------------------------------------------------------------------------


def worst_mean(rise, expected, corrector):
    """|mean - expected|, in allowances.

    The limit drops the ridge squared, and has \\|X_perp\\|^2 = N / snr for the N - d of R.
    """
    error = rise.std(0) / len(rise) ** 0.5
    slack = 5.0 / DIM * corrector.abs() + 2e-4
    return float(((rise.mean(0) - expected).abs() / (Z * error + slack)).max())


def worst_covariance(rise, D, c):
    """|c Cov(rise) - D|, entry by entry, in allowances."""
    rise = (rise - rise.mean(0)) * c**0.5
    products = rise[:, :, None] * rise[:, None, :]
    error = products.std(0) / len(rise) ** 0.5
    slack = 0.03 * torch.outer(D.diag(), D.diag()).sqrt() + 1e-6
    return float(((products.mean(0) - D).abs() / (Z * error + slack)).max())


@pytest.mark.parametrize("snr", [4.0, 20.0])
@pytest.mark.parametrize(("kind", "width"), [("binary", 2), ("xor", 1), ("xor", 2)])
def test_one_step_of_sgd_has_the_predicted_mean_and_covariance(kind, width, snr):
    """23 or 24 means and 83 covariances at each snr."""
    c = 6.0
    problem = make(kind, width=width, snr=snr)
    start = a_start(problem)
    u = u_of(problem, start)

    def optimizer(model):
        return torch.optim.SGD(model.parameters(), lr=c / DIM, weight_decay=problem.ridge)

    rise = one_step(problem, start, optimizer, samples=8000)
    dynamics = problem.dynamics(step_size=c)
    g = dynamics.corrector(u)
    assert worst_mean(rise, dynamics(0.0, u), g) < 1
    assert worst_covariance(rise, dynamics.diffusion(u), c) < 1
    # negative controls: other weights, and no corrector
    for weights in WRONG[kind]:
        other = make(kind, weights, width=width, snr=snr).dynamics(step_size=c)
        assert worst_mean(rise, other(0.0, u), g) > 1.5
        assert worst_covariance(rise, other.diffusion(u), c) > 1.5
    assert worst_mean(rise, dynamics.drift(u), g) > 1.5


# --- components given several times ---------------------------------------------------------------

C, D = [1.0, 0.0], [0.6, 0.8]
MINUS_C, MINUS_D = [-1.0, 0.0], [-0.6, -0.8]
#: means with repetitions and their labels; each once, its label and weight
REPEATED = {
    "binary": (([[1.0], [1.0], [-1.0]], [1, 1, 0]), ([[1.0], [-1.0]], [1, 0], [2 / 3, 1 / 3])),
    "none": (([[1.0], [-1.0]], [1, 0]), ([[1.0], [-1.0]], [1, 0], [0.5, 0.5])),
    "own": (
        ([C, C, D, D, MINUS_C, MINUS_D, C], [1, 1, 0, 0, 1, 0, 1]),
        ([C, D, MINUS_C, MINUS_D], [1, 0, 1, 0], [3 / 7, 2 / 7, 1 / 7, 1 / 7]),
    ),
    "both labels": (
        ([C, C, D, C], [1, 1, 1, 0]),
        ([C, D, C], [1, 1, 0], [0.5, 0.25, 0.25]),
    ),
    "never drawn": (
        ([C, D, D], [1, 0, 0]),
        ([C, MINUS_C, D, [0.0, 0.0]], [1, 0, 0, 1], [1 / 3, 0.0, 2 / 3, 0.0]),
    ),
}


def both_ways(case, **options):
    repeated, once = REPEATED[case]
    return of_means(*repeated, **options), of_means(*once, **options)


@pytest.mark.parametrize("snr", [0.5, 100.0, math.inf])
@pytest.mark.parametrize(("case", "width"), [(c, 2) for c in REPEATED] + [("own", 3)])
def test_a_weight_is_a_number_of_repetitions(case, width, snr):
    """Drift, corrector, diffusion and derivatives, to rounding."""
    level = {"level": -2} if width > 2 else {}
    repeated, once = (
        p.dynamics(step_size=3.0, **level) for p in both_ways(case, width=width, snr=snr)
    )
    u = points_of(once)
    close = {"rtol": 1e-11, "atol": 1e-12}
    torch.testing.assert_close(repeated.drift(u), once.drift(u), **close)
    torch.testing.assert_close(repeated.corrector(u), once.corrector(u), **close)
    torch.testing.assert_close(repeated.diffusion(u), once.diffusion(u), **close)
    if width == 2:
        jacobians = (d.jacobian(u[:2]) for d in (repeated, once))
        torch.testing.assert_close(*jacobians, rtol=1e-8, atol=1e-9)
    if case != "none":
        equal = of_means(*REPEATED[case][1][:2], width=width, snr=snr)
        equal = equal.dynamics(step_size=3.0, **level)
        assert float((equal.drift(u) - once.drift(u)).abs().max()) > 1e-2


def test_repetitions_of_the_other_uses_of_the_field():
    """Ascent, layers that differ, momentum and the coarse rule of bands have the same weights."""
    for snr in (2.0, math.inf):
        repeated, once = both_ways("own", snr=snr)
        model = once.model()
        layers = [{"params": [model.first.weight]}, {"params": [model.second.weight], "lr": 0.02}]
        for options in ({"maximize": True}, {"momentum": 0.5}):
            optimizer = torch.optim.SGD(layers, lr=0.01, weight_decay=0.1, **options)
            a, b = (p.dynamics(optimizer) for p in (repeated, once))
            u = points_of(b)
            torch.testing.assert_close(a(0.0, u), b(0.0, u), rtol=1e-11, atol=1e-12)
            torch.testing.assert_close(a.diffusion(u), b.diffusion(u), rtol=1e-11, atol=1e-12)
    repeated, once = both_ways("own", width=3)
    fields = [p.dynamics(step_size=3.0).field.for_band() for p in (repeated, once)]
    u = points_of(once.dynamics(step_size=3.0), 2)
    torch.testing.assert_close(*(f.terms(u) for f in fields), rtol=1e-11, atol=1e-12)


# --- no noise -------------------------------------------------------------------------------------


def moves_of(v, m, coordinates, labels):
    """-relu(h_i) s and -v_i c 1{h_i > 0} s of each component, number by number, (A, K + K d)."""
    rows = []
    for c, y in zip(coordinates.tolist(), labels.tolist(), strict=True):
        h = [sum(a * b for a, b in zip(row, c, strict=True)) for row in m.tolist()]
        psi = sum(vi * max(hi, 0.0) for vi, hi in zip(v.tolist(), h, strict=True))
        s = 1 / (1 + math.exp(-psi)) - y
        dv = [-max(hi, 0.0) * s for hi in h]
        dm = [-vi * s * cj * (hi > 0) for vi, hi in zip(v.tolist(), h, strict=True) for cj in c]
        rows.append(dv + dm)
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("kind", SHARES)
def test_no_noise_against_the_average_over_components_written_out(kind):
    """Drift and diffusion; other weights have others."""
    c, ridge = 3.0, 0.07
    dynamics, *others = (
        make(kind, weights, width=3, snr=math.inf, ridge=ridge).dynamics(step_size=c)
        for weights in ("own", *WRONG[kind])
    )
    p = torch.tensor(SHARES[kind], dtype=torch.float64)
    starts = dynamics.geometry.starts(dynamics, 20, torch.Generator().manual_seed(0))
    v, m, R = dynamics.split(starts)
    # outside the layers around h = 0 in which neurons slide
    starts = dynamics.join(v, m + 0.02 * m.sign(), R)
    drifts, diffusions = [], []
    for u in starts:
        v, m, _ = dynamics.split(u)
        moves = moves_of(v, m, dynamics.coordinates, dynamics.labels)
        centred = moves - p @ moves
        covariance = centred.mT @ (p[:, None] * centred)
        drift = torch.nn.functional.pad(p @ moves, (0, 6))
        drifts.append(drift - ridge * dynamics.field.decay(u))
        diffusions.append(c * torch.nn.functional.pad(covariance, (0, 6, 0, 6)))
    drift, D = torch.stack(drifts), torch.stack(diffusions)
    torch.testing.assert_close(dynamics(0.0, starts), drift, rtol=0, atol=1e-14)
    torch.testing.assert_close(dynamics.diffusion(starts), D, rtol=0, atol=1e-13)
    for other in others:
        assert float((other(0.0, starts) - drift).abs().max()) > 0.1
    # two components have the variance p (1 - p), whichever is the frequent one
    for other in others if kind == "xor" else others[:1]:
        assert float((other.diffusion(starts) - D).abs().max()) > 0.05


@pytest.mark.parametrize("kind", SHARES)
def test_no_noise_is_the_limit_of_little_noise(kind):
    u = points_of(make(kind).dynamics(step_size=1.0), 20)[:-1]
    none, some, less = (
        make(kind, snr=snr).dynamics(step_size=1.0)(0.0, u) for snr in (math.inf, 1e4, 1e8)
    )
    gaps = [float((x - none).abs().max()) for x in (some, less)]
    assert gaps[1] < 1e-3
    assert gaps[1] < gaps[0] / 3 or gaps[0] < 1e-3


# e_2 and -e_2 push a neuron with v > 0 to h = 0 between them; the last mean pulls it towards e_2
PUSHED = [[0.0, 1.0], [0.0, -1.0], [0.6, 2.0]], [0, 0, 1]
#: weights that hold the neuron at h = 0; equal ones, and these of other means, let it go
HELD, FREE = [0.7, 0.1, 0.2], [0.2, 0.1, 0.7]


def pushed(weights, snr=math.inf, width=1, **options):
    problem = of_means(*PUSHED, weights, width=width, snr=snr, ridge=0.01, **options)
    return problem.dynamics(step_size=1.0)


def along_e2(dynamics, offset):
    """The velocity of m . e_2 of a neuron with v = 1 at m = (1, offset)."""
    m = torch.tensor([[1.0, offset]], dtype=torch.float64)
    u = dynamics.join(torch.ones(1).double(), m, torch.zeros(1, 1).double())
    return float(dynamics.split(dynamics(0.0, u))[1][0, 1])


@pytest.mark.parametrize(("weights", "held"), [(HELD, True), (FREE, False), (None, False)])
def test_the_weights_say_whether_a_neuron_slides(weights, held):
    """As a large snr does, and repeated components."""
    ahead, behind = (along_e2(pushed(weights), 0.02 * side) for side in (1, -1))
    assert behind > 0.05
    assert (ahead < -0.05) is held
    assert (abs(along_e2(pushed(weights), 0.0)) < 1e-14) is held
    # a noise of 0.001 in h: both sides are the same, and the middle is between them
    near = pushed(weights, snr=1e6)
    assert along_e2(near, 0.02) == pytest.approx(ahead, abs=2e-3)
    assert along_e2(near, -0.02) == pytest.approx(behind, abs=2e-3)
    # the layer leads from one side to the other
    inside = [along_e2(pushed(weights), x) for x in (-9.9e-3, -5e-3, 5e-3, 9.9e-3)]
    if held:
        assert inside == sorted(inside, reverse=True)
        assert inside[0] == pytest.approx(behind, rel=0.03)
        assert inside[-1] == pytest.approx(ahead, rel=0.03)


def test_sliding_with_repeated_components():
    """In the layer and out of it: drift and diffusion to rounding, and the same neurons slide."""
    means, labels = PUSHED
    times = [7, 1, 2]
    repeated = of_means(
        [c for c, n in zip(means, times, strict=True) for _ in range(n)],
        [y for y, n in zip(labels, times, strict=True) for _ in range(n)],
        width=2, snr=math.inf, ridge=0.01,
    ).dynamics(step_size=1.0)  # fmt: skip
    once, free = pushed(HELD, width=2), pushed(FREE, width=2)
    offsets = torch.linspace(-0.015, 0.015, 13).double()
    m = torch.zeros(13, 2, 2).double()
    m[:, 0, 0], m[:, 0, 1], m[:, 1, 0] = 1.0, offsets, 0.4
    v = torch.tensor([1.0, -0.7]).double().expand(13, 2)
    u = once.join(v, m, torch.zeros(13, 2, 2).double())
    torch.testing.assert_close(repeated(0.0, u), once(0.0, u), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(repeated.diffusion(u), once.diffusion(u), rtol=1e-11, atol=1e-12)
    assert float((free(0.0, u) - once(0.0, u)).abs().max()) > 0.1
    # no diffusion of m . e_2 where it is held, and diffusion where it is not
    at = once.names.index("m[0,1]")
    inside = offsets.abs() < 0.01
    assert float(once.diffusion(u)[inside, at, at].abs().max()) < 1e-14
    assert float(free.diffusion(u)[:, at, at].min()) > 1e-3


@pytest.mark.slow
def test_the_way_to_where_a_neuron_slides():
    """From m . e_2 = 0.3 to 0 and along it: as at snr 1e5, and not with equal weights."""
    start = torch.tensor([1.0, 1.0, 0.3, 0.0], dtype=torch.float64)
    times = torch.linspace(0, 4, 5).double()
    none, some, other = (
        d.solve(start, times) for d in (pushed(HELD), pushed(HELD, snr=1e5), pushed(None))
    )
    assert abs(float(none["m[0,1]"][-1])) < 1e-6
    assert float((some.values - none.values).abs().max()) < 5e-3
    assert float((other.values - none.values).abs().max()) > 0.1


# --- runs -----------------------------------------------------------------------------------------


CHAINS = 4000


@pytest.mark.parametrize("kind", SHARES)
def test_runs_of_sgd_the_ode_its_band_and_the_chain(kind):
    """60 runs at N = 400: 80 means, and 16 spreads at the end; more runs of the chain."""
    c, runs, steps, every = 1.0, 60, 400, 80
    problem = make(kind)
    start = a_start(problem)
    measured = tl.train(
        problem, step_size=c, time=steps * c / DIM, runs=runs, every=every, seed=1, start=start,
        progress=False,
    )  # fmt: skip
    u0 = measured.initial[0]
    dynamics = problem.dynamics(step_size=c)
    predicted = dynamics.solve(u0, measured.times, band=True)
    slack = 4 / DIM
    assert misses(measured, predicted, z=Z, slack=slack) < 1
    # the standard deviation of 60 runs has a relative error of 9 %, and the band one of O(1/N)
    ratio = measured.values[:, -1].std(0) / predicted.std[-1]
    assert float(ratio.log().abs().max()) < Z * 0.092 + 0.05
    chained = problem.reduced_chain(step_size=c).run(
        u0, steps, runs=CHAINS, every=every, generator=torch.Generator().manual_seed(2)
    )
    assert torch.equal(chained.steps, measured.steps)
    ours, theirs = measured.values[:, 1:], chained.values[:, 1:]
    error = (ours.var(0) / runs + theirs.var(0) / CHAINS).sqrt()
    assert float(((ours.mean(0) - theirs.mean(0)).abs() / error).max()) < Z
    for weights in WRONG[kind]:
        other = make(kind, weights).dynamics(step_size=c)
        assert misses(measured, other.solve(u0, measured.times), z=Z, slack=slack) > 2
    wrong = make(kind, None).dynamics(step_size=c).solve(u0, measured.times, band=True)
    for band, fits in ((predicted, True), (wrong, False)):
        ratio = (theirs[:, -1].std(0) / band.std[-1]).log().abs().max()
        assert (float(ratio) < Z / (2 * CHAINS) ** 0.5 + 0.05) is fits


# --- fixed points ---------------------------------------------------------------------------------


def radius(weight, ridge):
    """|v| of a neuron alone on a component: sigmoid(-v^2) = ridge / weight; 0 if that is over 1."""
    return math.log(weight / ridge - 1) ** 0.5 if weight > 2 * ridge else 0.0


@pytest.mark.parametrize("kind", SHARES)
def test_fixed_points_without_noise_are_where_one_computes_them(kind):
    """Each neuron alone on a mean: |v| = |m|, of a size that the weight of the mean says."""
    ridge, shares = 0.02, SHARES[kind]
    problem = make(kind, snr=math.inf, ridge=ridge)
    dynamics = problem.dynamics(step_size=1.0)
    signs = (2 * problem.labels - 1).tolist()
    starts, expected = [], []
    for a, b in [(0, 1), (1, 0), *([(0, 2), (3, 0), (2, 3)] if kind == "xor" else [])]:
        size = torch.tensor([radius(shares[x], ridge) for x in (a, b)], dtype=torch.float64)
        v = size * torch.tensor([signs[a], signs[b]], dtype=torch.float64)
        u = dynamics.join(v, size[:, None] * dynamics.coordinates[[a, b]], torch.zeros(2, 2))
        expected.append(u)
        starts.append(u + 0.03 * torch.linspace(-1, 1, len(u)))
    for u in expected:
        assert float(dynamics(0.0, u).abs().max()) < 1e-13
    found = dynamics.fixed_points(torch.stack(starts).double(), flow=5.0)
    for u in expected:
        nearest = min(found, key=lambda p: float((p.u - u).abs().max()))
        torch.testing.assert_close(nearest.u, u, rtol=0, atol=1e-8)
        assert nearest.stable
        plain = make(kind, None, snr=math.inf, ridge=ridge).dynamics(step_size=1.0)
        assert float(plain(0.0, u).abs().max()) > 1e-2


def test_a_component_too_rare_for_its_ridge_has_no_neuron():
    """Weight 0.2 below the ridge's 2 alpha = 0.24: with the closed form's 1/A it would have one."""
    problem = make("binary", ridge=0.22, snr=math.inf, width=1)
    found = problem.dynamics(step_size=1.0).fixed_points(count=60)
    assert max(float(p.u[1]) for p in found) == pytest.approx(radius(0.8, 0.22))
    assert min(float(p.u[1]) for p in found) == pytest.approx(0.0, abs=1e-9)
    equal = make("binary", None, ridge=0.22, snr=math.inf, width=1)
    found = equal.dynamics(step_size=1.0).fixed_points(count=60)
    assert min(float(p.u[1]) for p in found) == pytest.approx(-radius(0.5, 0.22))


def at(problem, u):
    """A model with these statistics, the neurons' other parts along the axes after the means'."""
    K, d = problem.width, len(problem.directions)
    v, m, R = problem.dynamics(step_size=1.0).split(u)
    values, vectors = torch.linalg.eigh(R)
    model = problem.model()
    model.second.weight.data.copy_(v[None])
    model.first.weight.data.zero_()[:, :d] = m
    model.first.weight.data[:, d : d + K] = vectors * values.clamp_min(0).sqrt()
    torch.testing.assert_close(u_of(problem, model), u)
    return model


@pytest.mark.slow
def test_sgd_and_the_ode_rest_at_a_fixed_point_found():
    """Noise, a corrector and weights: 60 runs of 400 steps from the best stable point."""
    c, problem = 1.0, make("binary", snr=4.0, ridge=0.05)
    dynamics = problem.dynamics(step_size=c)
    without_noise = torch.tensor([1.6, -1.0, 1.6, -1.0, 0.1, 0.0, 0.1], dtype=torch.float64)
    (point,) = dynamics.fixed_points(without_noise[None], flow=10.0)
    assert point.stable
    assert bool(problem.is_optimal(point.u))
    u = point.u
    assert float(dynamics(0.0, u).abs().max()) < 1e-7
    beside = dynamics.solve(u + 0.05, [0.0, 100.0], rtol=1e-9, atol=1e-11).final
    torch.testing.assert_close(beside, u, rtol=0, atol=1e-4)
    measured = tl.train(
        problem, step_size=c, time=400 * c / DIM, runs=60, every=80, seed=1, start=at(problem, u),
        progress=False,
    )  # fmt: skip
    error = measured.values[:, 1:].std(0) / 60**0.5
    slack = 4 / DIM
    strayed = (measured.values[:, 1:].mean(0) - u).abs()
    assert float((strayed / (Z * error + slack)).max()) < 1
    for weights in WRONG["binary"]:
        other = make("binary", weights, snr=4.0, ridge=0.05).dynamics(step_size=c)
        assert misses(measured, other.solve(u, measured.times), z=Z, slack=slack) > 2


def test_idle_neurons_grow_at_the_rate_of_the_weights():
    """The largest eigenvalue at 0, of a neuron on the more frequent mean: weight/2 - ridge."""
    for kind in SHARES:
        zero = torch.zeros(len(make(kind).names), dtype=torch.float64)
        (point,) = (
            p
            for p in make(kind, snr=math.inf)
            .dynamics(step_size=1.0)
            .fixed_points(zero[None], flow=0)
        )
        # s = 1/2 at 0: dv = w m/2, dm = w v/2 along the mean
        assert float(point.eigenvalues[0].real) == pytest.approx(max(SHARES[kind]) / 2 - 0.1)
        assert point.kind == "unstable"


# --- what is built on the dynamics ----------------------------------------------------------------


def test_closed_forms_are_refused_by_the_name_of_the_weights():
    limit = make("xor").small_noise()
    for known in (limit.fixed_point_components, limit.success_probability):
        with pytest.raises(ValueError, match=r"weights=\[0.5, 0.05, 0.4, 0.05\]"):
            known()

    def with_ridge(ridge):
        return make("binary", ridge=ridge)

    with pytest.raises(ValueError, match=r"got weights=\[0.8, 0.2\]"):
        tl.phase_diagram(with_ridge, ("ridge", [0.1]), ("step_size", [1.0]))


@pytest.mark.slow
def test_basins_and_success_with_repeated_components():
    """The same classes and ends, which equal weights do not have; and what SGD does."""
    options = {"snr": 100.0, "ridge": 0.05}
    repeated, once = both_ways("binary", **options)
    starts = once.starts(10, generator=torch.Generator().manual_seed(0))
    assert torch.equal(starts, repeated.starts(10, generator=torch.Generator().manual_seed(0)))
    a, b, equal = (
        tl.basins(p.dynamics(step_size=1.0), starts, time=60.0)
        for p in (repeated, once, of_means(*REPEATED["binary"][1][:2], **options))
    )
    torch.testing.assert_close(a.final, b.final, rtol=1e-6, atol=1e-7)
    assert torch.equal(torch.tensor([0, 0, 1, -1])[a.classes], b.classes)
    assert float((equal.final - b.final).abs().max()) > 0.1
    by_dynamics = [tl.success.by_dynamics(p, step_size=1.0, starts=40) for p in (repeated, once)]
    assert by_dynamics[0] == by_dynamics[1]
    by_sgd = tl.success.by_sgd(once, step_size=1.0, time=15.0, runs=12)
    low, high = by_sgd.interval(0.999)
    assert low < by_dynamics[1].value < high


def test_means_that_are_never_drawn_need_no_neuron():
    """`is_optimal` and the two of `tl.success` ask for the means that there are."""
    never, fewer = both_ways("never drawn")[1], of_means([C, D], [1, 0], [1 / 3, 2 / 3])
    for v, right in ((1.0, True), (-1.0, False)):
        u = torch.tensor([v, -1.0, 1.0, -0.7, 0.6, 0.8, 0.0, 0.0, 0.0])
        assert bool(never.is_optimal(u)) is bool(fewer.is_optimal(u)) is right
        assert float(never.accuracy(u)) == pytest.approx(float(fewer.accuracy(u)))


def test_classes_with_a_mean_at_the_origin():
    """No neuron turns to it."""
    dynamics = of_means([C, [0.0, 0.0]], [1, 0], [0.7, 0.3]).dynamics(step_size=1.0)
    u = torch.tensor([1.0, 1.0, 2.0, 0.1, -2.0, 0.1, 0.0, 0.0, 0.0])
    assert dynamics.classes(u).tolist() == [0, -1]


# --- dtypes, devices, copies ----------------------------------------------------------------------


@pytest.mark.parametrize("snr", [2.0, math.inf])
@pytest.mark.parametrize("kind", SHARES)
def test_precisions_devices_and_copies(kind, snr):
    dynamics = make(kind, snr=snr).dynamics(step_size=1.0)
    u = points_of(dynamics, 3)[:-1]
    names = ("drift", "corrector", "diffusion")
    expected = [getattr(dynamics, name)(u) for name in names]
    for name, exact in zip(names, expected, strict=True):
        single = getattr(dynamics, name)(u.float())
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-5)
        with torch.device("meta"):
            assert torch.equal(getattr(dynamics, name)(u), exact)
    with torch.device("meta"):
        made = make(kind, snr=snr)
        again = made.dynamics(step_size=1.0)
        torch.testing.assert_close(again.jacobian(u), dynamics.jacobian(u))
        generator = torch.Generator().manual_seed(0)
        path = made.reduced_chain(step_size=1.0).run(u[0], 3, runs=2, generator=generator)
    assert path.values.device.type == "cpu"
    problem = make(kind, snr=snr)
    for other in (pickle.loads(pickle.dumps(problem)), copy.deepcopy(problem)):
        assert torch.equal(other.dynamics(step_size=1.0)(0.0, u), dynamics(0.0, u))
    for other in (pickle.loads(pickle.dumps(dynamics)), copy.deepcopy(dynamics)):
        assert torch.equal(other(0.0, u), dynamics(0.0, u))
    assert torch.equal(copy.deepcopy(dynamics).float()(0.0, u.float()), dynamics(0.0, u.float()))


def test_float32_weights_are_those_given():
    """Probabilities in float32, of a sum that is not quite 1."""
    shares = torch.tensor([0.1, 0.2, 0.3, 0.4])
    single, double = make("xor", shares), make("xor", [0.1, 0.2, 0.3, 0.4])
    u = points_of(double.dynamics(step_size=1.0))
    drifts = (p.dynamics(step_size=1.0).drift(u) for p in (single, double))
    torch.testing.assert_close(*drifts, rtol=1e-6, atol=1e-7)


def test_predictions_say_the_weights():
    """As the problem does, and only where they differ."""
    for snr in (2.0, math.inf):
        facts = make("xor", snr=snr).dynamics(step_size=1.0).describe()
        assert facts["weights"] == pytest.approx(SHARES["xor"])
        assert "weights" not in make("xor", None, snr=snr).dynamics(step_size=1.0).describe()


def test_weights_keep_their_last_bit_in_copies():
    """Their sum, 1 to rounding, does not divide them once more with every copy."""
    given = torch.tensor([0.5, 0.1, 0.3, 0.1], dtype=torch.float64)
    assert float(given.sum()) != 1
    problem = make("xor", given)
    for _ in range(3):
        assert torch.equal(problem.weights, given)
        problem = pickle.loads(pickle.dumps(problem)).small_noise()
