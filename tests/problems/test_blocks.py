"""Networks on inputs with a covariance: blocks against naive sums, SGD, and one another."""

import math
import warnings

import pytest
import torch
from torch import nn

import torchlimits as tl
from torchlimits.problems.data.blocks import Blocks
from torchlimits.problems.data.covariance import Covariance

DOUBLE = torch.float64
SPECTRUM = [(0.5, 0.4), (1.0, 0.4), (4.0, 0.2)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def in_three_blocks(dim=1000, **given):
    """tanh, K = 2, on two means in the first block; labels read a direction in the other two."""
    e = torch.zeros(2, dim, dtype=DOUBLE)
    e[0, 10 * dim // 1000], e[1, dim // 2], e[1, 9 * dim // 10] = 1.0, 0.6, 0.8
    torch.manual_seed(1)
    head = nn.Sequential(nn.Tanh(), nn.Linear(2, 1))
    arguments = {
        "dim": dim, "width": 2, "head": head, "loss": nn.functional.mse_loss,
        "means": torch.stack([1.2 * e[0], -1.2 * e[0]]), "directions": e, "labels": seen,
        "label_noise": 0.3, "snr": 1.0, "ridge": 0.1, "dtype": DOUBLE, "covariance": SPECTRUM,
    }  # fmt: skip
    return tl.NetworkProblem(**(arguments | given))


def seen(x, component):
    return 0.8 * x[:, 1] + 0.5 - component.to(x)


def classes(dim=200, **given):
    arguments = {
        "dim": dim, "width": 2, "head": nn.Sequential(nn.Tanh(), nn.Linear(2, 3)),
        "loss": nn.functional.cross_entropy, "means": torch.eye(3, dim), "snr": 4.0,
        "labels": torch.tensor([0, 1, 2]), "dtype": DOUBLE,
    }  # fmt: skip
    return tl.NetworkProblem(**(arguments | given))


def start(problem, seed=0):
    return problem.starts(1, generator=generator(seed))[0]


# --- statistics -----------------------------------------------------------------------------------


def test_statistics_are_sums_over_eigenspaces():
    problem = in_three_blocks(dim=50, snr=2.0)
    model = problem.model(generator=generator())
    W, e = model.get_parameter("first.weight").detach(), problem.directions
    u = dict(zip(problem.names, start(problem).tolist(), strict=True))
    for block, rows in enumerate((slice(0, 20), slice(20, 40), slice(40, 50))):
        inside = W[:, rows]
        for j in range(2):
            part = e[j, rows]
            if part.norm() < 1e-9:
                assert f"m[{block},0,{j}]" not in u
                continue
            unit = part / part.norm()
            overlap = inside @ unit
            assert u[f"m[{block},0,{j}]"] == pytest.approx(float(overlap[0]), abs=1e-14)
            inside = inside - overlap[:, None] * unit
        R = inside @ inside.mT
        for i, j in ((0, 0), (0, 1), (1, 1)):
            assert u[f"R[{block},{i},{j}]"] == pytest.approx(float(R[i, j]), abs=1e-14)


@pytest.mark.parametrize("most", [4, 16, None])
def test_grouped_statistics_keep_lengths_and_the_noise_of_pre_activations(most):
    dim = 60
    spectrum = 1 / torch.arange(1, dim + 1).double()
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=generator()).double()).Q
    lam = basis @ spectrum.diag() @ basis.mT
    e = torch.linalg.qr(torch.randn(dim, 2, generator=generator(1)).double()).Q.mT
    problem = classes(dim, means=e, labels=torch.tensor([0, 1]), covariance=lam,
                      blocks=most or "all")  # fmt: skip
    model = problem.model(generator=generator(2))
    W = model.get_parameter("first.weight").detach()
    _, _, m, R = problem.layout.split(start(problem, 2))
    blocks = problem.layout.blocks
    noise = (m * blocks.along[0]) @ m.mT + (blocks.eigenvalues[0][:, None, None] * R).sum(0)
    torch.testing.assert_close(noise, W @ lam @ W.mT)
    torch.testing.assert_close(m @ m.mT + R.sum(0), W @ W.mT)
    torch.testing.assert_close(m @ blocks.turn.mT, W @ e.mT)
    assert float(blocks.fractions.sum()) == pytest.approx(1)
    over_all = problem.layout.whole.join(*problem.layout.over_all(start(problem, 2)))
    torch.testing.assert_close(over_all, problem.overall(dict(model.named_parameters())).detach())


@pytest.mark.parametrize("most", [4, None])
def test_gradients_of_grouped_statistics_are_those_of_autograd(most):
    dim = 30
    covariance = Covariance(1 / torch.arange(1, dim + 1))
    e = torch.linalg.qr(torch.randn(dim, 1, generator=generator(1)).double()).Q.mT
    problem = classes(dim, means=e, labels=torch.tensor([0]), covariance=covariance,
                      blocks=most or "all")  # fmt: skip
    grams = problem.statistics.functions["R"]
    W = torch.randn(2, dim, dtype=DOUBLE, generator=generator(3))
    a, x = (torch.randn(5, n, dtype=DOUBLE, generator=generator(4)) for n in (2, dim))
    from torchlimits.statistics.quadratic import OuterGradient

    outer = OuterGradient(a, x)
    jacobian = torch.func.jacrev(lambda w: grams({"first.weight": w}))(W)
    for gradient in (outer, outer.dense()):
        along = grams.along({"first.weight": W}, gradient)
        expected = torch.einsum("ekn,bkn->be", jacobian, outer.dense())
        torch.testing.assert_close(along, expected)
    _, bend, _ = grams.changes({"first.weight": W}, outer, torch.zeros_like(W))
    twice = [grams({"first.weight": g}) for g in outer.dense()]
    torch.testing.assert_close(bend, torch.stack(twice))


# --- one block is the isotropic case --------------------------------------------------------------


@pytest.mark.parametrize("covariance", [[(1.0, 1.0)], [(1.0, 0.3), (1 + 1e-8, 0.3), (1.0, 0.4)]])
def test_equal_eigenvalues_are_the_isotropic_case(covariance):
    problem, plain = classes(covariance=covariance), classes()
    u, v = start(problem), start(plain)
    dynamics, same = problem.dynamics(step_size=1.0), plain.dynamics(step_size=1.0)

    def over_all(x):
        return problem.layout.whole.join(*problem.layout.over_all(x))

    torch.testing.assert_close(over_all(u), v, rtol=1e-12, atol=1e-12)
    J = torch.func.jacrev(over_all)(u)
    near = {"rtol": 1e-6, "atol": 1e-7} if len(covariance) > 1 else {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(J @ dynamics(0.0, u), same(0.0, v), **near)
    torch.testing.assert_close(J @ dynamics.diffusion(u) @ J.mT, same.diffusion(v), **near)
    torch.testing.assert_close(dynamics.risk(u), same.risk(v), **near)
    torch.testing.assert_close(dynamics.accuracy(u), same.accuracy(v), **near)
    torch.testing.assert_close(dynamics.lengths(u), same.lengths(v))
    path = dynamics.overall(u, [0.0, 0.5], band=True)
    other = same.solve(v, [0.0, 0.5], band=True)
    assert path.names == other.names
    torch.testing.assert_close(path.values, other.values, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(path.std, other.std, rtol=1e-3, atol=1e-7)


def test_equal_eigenvalues_are_the_isotropic_case_to_1e_12():
    problem, plain = classes(covariance=[(1.0, 1.0)]), classes()
    u, v = start(problem), start(plain)
    rate = problem.dynamics(step_size=1.0)(0.0, u)
    place = [
        plain.names.index(n.replace("[0,", "[", 1) if n[0] in "mR" else n) for n in problem.names
    ]
    assert float((rate - plain.dynamics(step_size=1.0)(0.0, v)[place]).abs().max()) < 1e-12
    # three equal blocks: levels are joined, so that they are made by hand
    table = Blocks.of(Covariance(torch.ones(200)), problem.directions)
    assert len(table) == 1


# --- the formulas against the loss itself ---------------------------------------------------------


@pytest.mark.parametrize("different", [pytest.param(False, marks=pytest.mark.slow), True])
def test_drift_and_corrector_are_means_of_steps(different):
    """Increments of real SGD steps in full space, N = 600, at one point, by 20,000 samples."""
    dim, c = 600, 1.5
    covariance = SPECTRUM
    if different:
        rows = [torch.tensor([0.3, 1.0, 2.0]), torch.tensor([1.0, 3.0, 0.5])]
        covariance = torch.stack([r.repeat_interleave(200) for r in rows])
    problem = in_three_blocks(dim, covariance=covariance)
    model = problem.model(generator=generator(5))
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    u = problem.statistics(parameters)
    drift, corrector = (
        f(u) for f in (problem.dynamics(step_size=c).drift, problem.dynamics(step_size=c).corrector)
    )
    moved, count, size = [], 40, 500
    source = generator(6)

    def loss(p, x, y):
        return nn.functional.mse_loss(torch.func.functional_call(model, p, (x[None],)), y[None])

    step = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    for _ in range(count):
        x, y = problem.sample(size, generator=source)
        g = step(parameters, x, y)
        g = {n: g[n] + 0.1 * parameters[n] for n in g}
        after = problem.statistics({n: parameters[n] - c / dim * g[n] for n in g})
        moved.append((after - u) * dim / c)
    mean = torch.stack([x.mean(0) for x in moved])
    error = mean.std(0) / count**0.5
    z = (mean.mean(0) - drift - corrector) / error
    # of order 1/N: blocks of 120 have 1 direction, and 2 along which W lies already
    slack = 0.03 * corrector.abs() + 0.1**2 * c / dim
    assert float((z.abs() - slack / error).max()) < 4
    without = (mean.mean(0) - drift) / error
    assert float(without.abs().max()) > 50


@pytest.mark.parametrize("different", [False, True])
def test_covariance_of_a_step_is_that_of_steps(different):
    dim, c = 400, 1.5
    covariance = SPECTRUM
    if different:
        rows = [torch.tensor([0.3, 1.0, 2.0]), torch.tensor([1.0, 3.0, 0.5])]
        covariance = torch.stack([r.repeat_interleave(torch.tensor([160, 160, 80])) for r in rows])
    problem = in_three_blocks(dim, covariance=covariance, ridge=0.0)
    u = start(problem, 5)
    limit = problem.dynamics(step_size=c).diffusion(u)
    chain = problem.reduced_chain(step_size=c)
    runs = 40_000
    after = chain.run(u, 1, runs=runs, every=1, generator=generator(7)).values[:, -1]
    rows = (after - u) / (c / dim)
    measured = c * torch.cov(rows.mT)
    scale = limit.diagonal().sqrt()
    ratio = (measured - limit) / torch.outer(scale, scale)
    centred = rows - rows.mean(0)
    fourth = (centred.square().mT @ centred.square()) / runs - torch.cov(rows.mT).square()
    error = c * (fourth.clamp_min(0) / runs).sqrt() / torch.outer(scale, scale)
    # N_l - d_l in place of N_l, and chi^2 of N_l: a few in 400
    assert float(((ratio.abs() - 0.02) / error).max()) < 5


# --- derivatives ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:lr lambda_max")
@pytest.mark.parametrize("make", [in_three_blocks, classes])
def test_jacobian_is_that_of_differences(make):
    rows = torch.tensor([[0.3, 1.0, 2.0, 1.0], [1.0, 3.0, 0.5, 2.0], [1.0, 1.0, 1.0, 2.0]])
    dim = 40
    components = 2 if make is in_three_blocks else 3
    for covariance in (SPECTRUM, rows[:components].repeat_interleave(10, 1)):
        problem = make(dim, covariance=covariance)
        dynamics, u = problem.dynamics(step_size=1.0, nodes=2**9), start(problem, 3)
        J = dynamics.jacobian(u[None])[0]
        eye = 1e-5 * torch.eye(len(u), dtype=DOUBLE)
        differences = ((dynamics(0.0, u + eye) - dynamics(0.0, u - eye)) / 2e-5).mT
        torch.testing.assert_close(J, differences, rtol=1e-5, atol=1e-7)


# --- resolution -----------------------------------------------------------------------------------


def power_law(blocks):
    dim = 1000
    spectrum = 1 / torch.arange(1, dim + 1).double()
    e = torch.linalg.qr(torch.randn(dim, 1, generator=generator(5)).double()).Q.mT.contiguous()
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        problem = tl.NetworkProblem(
            dim=dim, width=2, head=nn.Sequential(nn.Tanh(), nn.Linear(2, 1)), snr=1.0,
            loss=nn.functional.mse_loss, directions=e, label_noise=0.3, dtype=DOUBLE,
            labels=lambda x, _: torch.tanh(2 * x[:, 0]), blocks=blocks,
            covariance=spectrum * dim / spectrum.sum(),
        )  # fmt: skip
        return problem, problem.dynamics(step_size=0.1, nodes=2**9)


@pytest.mark.slow
def test_sixteen_blocks_are_within_5e_4_of_all_levels():
    risks = []
    model = power_law("all")[0].model(generator=generator(0))
    for blocks in ("all", 16, 4):
        problem, dynamics = power_law(blocks)
        u = problem.statistics({n: p.detach() for n, p in model.named_parameters()})
        path = dynamics.solve(u, torch.linspace(0, 0.6, 5), rtol=1e-6, atol=1e-8)
        risks.append(dynamics.risk(path.values))
    assert len(power_law("all")[0].layout.blocks) == 1000
    assert float((risks[1] - risks[0]).abs().max()) < 5e-4
    assert float((risks[2] - risks[0]).abs().max()) > 1e-3  # four do not do


# --- runs -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_runs_of_sgd_follow_the_dynamics_in_blocks():
    """tanh, K = 2, three blocks, N = 1000, 100 runs; seeds and sizes fixed beforehand."""
    problem = in_three_blocks()
    model = problem.model(generator=generator(0))
    runs, c = 100, 0.5
    measured = tl.train(
        problem, step_size=c, time=1.0, runs=runs, start=model, seed=1, progress=False, every=250
    )
    u = measured.initial[0]
    dynamics = problem.dynamics(step_size=c)
    predicted = dynamics.solve(u, measured.times, band=True)
    error = measured.values.std(0)[1:] / runs**0.5

    def rms(values):
        z = (measured.values.mean(0)[1:] - values[1:]) / error
        return float(z.square().mean().sqrt())

    assert rms(predicted.values) < 1.3
    assert rms(dynamics.solve(u, measured.times, corrector=False).values) > 10
    wrong = problem.dynamics(step_size=c)
    blocks = problem.layout.blocks
    trace = blocks.covariance.trace / 1000
    wrong.field._weights = lambda piece, like: (trace * blocks.fractions).to(like)[:, None, None]
    assert rms(wrong.solve(u, measured.times).values) > 10
    ratio = measured.values.std(0)[1:] / predicted.std[1:]
    assert 0.95 < float(ratio.log().mean().exp()) < 1.05


def two_sample(first, second):
    """z of the means, and the ratios of standard deviations."""
    error = (first.var(0) / len(first) + second.var(0) / len(second)).sqrt()
    return (first.mean(0) - second.mean(0)) / error, first.std(0) / second.std(0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("covariance", "momentum"),
    [
        ([(0.5, 0.5), (1.0, 0.4), (4.0, 0.1)], 0.0),  # the last block is carried whole
        (
            torch.stack([torch.arange(1, 4).repeat_interleave(10), torch.tensor(3.0).expand(30)]),
            0.0,
        ),
        ([(0.5, 0.5), (1.0, 0.5)], 0.5),
    ],
    ids=["thin", "components", "momentum"],
)
def test_the_exact_chain_is_sgd(covariance, momentum):
    dim, steps, runs, c = 30, 20, 2000, 0.6
    problem = in_three_blocks(dim, covariance=covariance)
    model = problem.model(generator=generator(0))
    settings = {"step_size": c, "batch_size": 2, "momentum": momentum}
    measured = tl.train(
        problem, **settings, time=steps * c / dim, runs=runs, start=model, seed=1, progress=False,
        every=steps,
    )  # fmt: skip
    chain = problem.reduced_chain(**settings)
    path = chain.run(measured.initial[0], steps, runs=runs, every=steps, generator=generator(3))
    z, ratio = two_sample(measured.values[:, -1], path.values[:, -1])
    known = path.values[:, -1].std(0) > 1e-9
    assert float(z[known].abs().max()) < 4
    n = runs**0.5
    assert float(((ratio[known].log()).abs() * n).max()) < 8


def test_the_chain_of_one_block_draws_what_the_isotropic_one_draws():
    problem, plain = classes(covariance=[(1.0, 1.0)]), classes()
    ends = [
        p.reduced_chain(step_size=1.0, batch_size=3).run(
            start(p), 20, runs=5, every=20, generator=generator(2)
        )
        for p in (problem, plain)
    ]
    over_all = problem.layout.whole.join(*problem.layout.over_all(ends[0].values))
    torch.testing.assert_close(over_all, ends[1].values, rtol=1e-10, atol=1e-12)


# --- one-layer models -----------------------------------------------------------------------------


def test_least_squares_by_the_general_path_is_the_linear_model():
    dim = 90
    spectrum = [(0.5, 1 / 3), (1.0, 1 / 3), (3.0, 1 / 3)]
    target = torch.ones(dim, dtype=DOUBLE) / math.sqrt(dim)
    problem = tl.NetworkProblem(
        dim=dim, width=1, head=nn.Identity(), bias=False, snr=1.0, dtype=DOUBLE, label_noise=0.5,
        loss=lambda output, y: 0.5 * nn.functional.mse_loss(output, y), directions=target[None],
        labels=lambda x, _: x[:, 0], covariance=spectrum,
    )  # fmt: skip
    linear = tl.LinearModel(dim=dim, covariance=spectrum, noise=0.5, target=target)
    times = torch.linspace(0, 3, 4)
    u = torch.zeros(len(problem.names), dtype=DOUBLE)
    dynamics = problem.dynamics(step_size=0.7)
    risk = dynamics.risk(dynamics.solve(u, times, rtol=1e-9, atol=1e-11).values)
    other = linear.dynamics(step_size=0.7)
    torch.testing.assert_close(
        risk, linear.risk(other.solve(linear.initial, times).values), rtol=1e-6, atol=1e-8
    )


# --- what is refused ------------------------------------------------------------------------------


def test_what_needs_isotropic_noise_is_refused():
    problem = classes(covariance=SPECTRUM)
    model = problem.model()
    with pytest.raises(ValueError, match="isotropic"):
        problem.dynamics(torch.optim.Adam(model.parameters(), lr=1e-3))
    with pytest.raises(ValueError, match="isotropic"):
        problem.dynamics(torch.optim.SGD(model.parameters(), lr=1e-3), clip_norm=1.0)
    with pytest.raises(ValueError, match="isotropic"):
        problem.dynamics(tl.SignSGD(model.parameters(), lr=1e-3))
    with pytest.raises(ValueError, match="isotropic"):
        problem.dynamics(step_size=1.0, momentum=0.5).next_order()


def test_large_eigenvalues_are_warned_of_and_refused():
    problem = classes(covariance=[(50.0, 0.02), (1.0, 0.98)])
    with pytest.warns(UserWarning, match=r"lr lambda_max = 0\.1"):
        problem.dynamics(step_size=2.0)
    with pytest.raises(ValueError, match="lr lambda_max"):
        problem.dynamics(step_size=20.0)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"covariance": torch.ones(2, 200)}, "covariances of the 3 components"),
        ({"blocks": 4}, "together with covariance"),
        ({"covariance": SPECTRUM, "blocks": 1}, "blocks >= 2"),
        ({"covariance": SPECTRUM, "blocks": 0}, "blocks"),
        ({"covariance": torch.zeros(200)}, "positive definite"),
        ({"covariance": SPECTRUM, "directions": torch.eye(1, 200)}, "span of the directions"),
    ],
)
def test_what_does_not_fit_is_refused(given, says):
    with pytest.raises(ValueError, match=says):
        classes(**given)


def test_chains_need_eigenspaces_and_their_own_dimension():
    grouped = classes(covariance=1 / torch.arange(1, 201))
    with pytest.raises(ValueError, match="group"):
        grouped.reduced_chain(step_size=0.1)
    with pytest.raises(ValueError, match="dim=200"):
        classes(covariance=SPECTRUM).reduced_chain(step_size=0.1, dim=400)


def test_bands_of_many_blocks_are_refused_with_advice():
    problem = classes(covariance=1 + torch.arange(200) / 200, blocks="all", dim=200)
    wide = problem.dynamics(step_size=0.1, nodes=64)
    assert len(problem.names) < 1500
    many = classes(dim=600, covariance=1 + torch.arange(600) / 600, blocks="all")
    with pytest.raises(ValueError, match="blocks=16"):
        many.dynamics(step_size=0.1, nodes=64).diffusion(start(many))
    assert wide.names == problem.names


def test_teacher_and_student_on_anisotropic_inputs():
    student = tl.TeacherStudent(
        dim=100, width=2, teacher_width=1, covariance=[(2.0, 0.2), (0.75, 0.8)],
        train_second_layer=False,
    )  # fmt: skip
    Q = torch.diag(torch.tensor([0.2, 0.3], dtype=DOUBLE))
    u = student.from_order_parameters(Q, torch.tensor([[0.1], [0.0]]))
    own, cross, teacher = student.order_parameters(u)
    torch.testing.assert_close(own, Q)
    torch.testing.assert_close(cross, torch.tensor([[0.1], [0.0]], dtype=DOUBLE))
    white = tl.TeacherStudent(
        dim=100, width=2, teacher_width=1, train_second_layer=False, covariance=[(1.0, 1.0)]
    )
    closed = tl.TeacherStudent(dim=100, width=2, teacher_width=1, train_second_layer=False)
    errors = [
        p.generalization_error(p.from_order_parameters(Q, torch.tensor([[0.1], [0.0]])))
        for p in (white, closed)
    ]
    torch.testing.assert_close(*errors, rtol=0, atol=1e-5)
    assert teacher.shape == (1, 1)


def test_copies_and_pickles_keep_the_covariance():
    import pickle

    problem = tl.NetworkProblem(
        dim=20, width=1, head=nn.Linear(1, 1), loss=nn.functional.mse_loss, snr=1.0,
        labels=torch.zeros(1), covariance=1 / torch.arange(1, 21), blocks=4,
    )  # fmt: skip
    again = pickle.loads(pickle.dumps(problem))
    assert again.names == problem.names
    assert "covariance" in again.describe()
