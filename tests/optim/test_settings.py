"""Every option of torch.optim.SGD: the dynamics against real SGD, and wrong factors that fail."""

import itertools
import math

import pytest
import torch
from real_sgd import copies, misses, one_step, train

import torchlimits as tl
from torchlimits.optim.parameter_groups import Layers
from torchlimits.optim.sgd import SGDSettings
from torchlimits.optim.sgd_limit import SGDLimit

#: |z| of one of some 50 comparisons; a normal variable exceeds it once in 15,000 times
Z = 4.0


def binary(dim=400, **options):
    return tl.GaussianMixture.binary(dim=dim, width=2, **{"snr": 1.0, **options})


def visible_start(problem):
    """Second-layer weights of order 1, so that there is a corrector to be seen."""
    start = problem.model(generator=torch.Generator().manual_seed(3))
    if isinstance(problem, tl.GaussianMixture):
        start.second.weight.data.copy_(torch.linspace(1.5, -1.0, problem.width))
        start.first.weight.data.mul_(1.5)
    return start


def u_of(problem, model):
    return problem.statistics({n: p.detach() for n, p in model.named_parameters()})


def worst_mean(rise, expected, slack):
    error = rise.std(0) / len(rise) ** 0.5
    return float(((rise.mean(0) - expected).abs() / (Z * error + slack)).max())


def worst_covariance(rise, D, lr_n):
    """Of lr n Cov(rise) against D, entry by entry, in allowances."""
    rise = (rise - rise.mean(0)) * lr_n**0.5
    products = rise[:, :, None] * rise[:, None, :]
    error = products.std(0) / len(rise) ** 0.5
    slack = 0.03 * torch.outer(D.diag(), D.diag()).sqrt() + 1e-6
    return float(((products.mean(0) - D).abs() / (Z * error + slack)).max())


# --- maximize -------------------------------------------------------------------------------------


def ascent(lr, decay=0.3):
    return lambda model: torch.optim.SGD(
        model.parameters(), lr=lr, weight_decay=decay, maximize=True
    )


def test_one_step_of_ascent_on_a_mixture():
    """The loss's drift turns round, ridge and corrector do not; nor the covariance's own terms."""
    c, decay = 6.0, 0.3
    problem = binary(ridge=decay, dtype=torch.float64)
    start = visible_start(problem)
    u = u_of(problem, start)
    rise = one_step(problem, start, ascent(c / 400), samples=10_000)
    dynamics = problem.dynamics(ascent(c / 400)(copies(problem, start, 1)))
    slack = 10 / 400 * dynamics.corrector(u).abs() + 2e-3
    assert worst_mean(rise, dynamics(0.0, u), slack) < 1
    descent = problem.dynamics(step_size=c)
    ridge = descent.limit.settings.weight_decay * descent.field.decay(u)
    # naive: everything turned round, or the ridge turned round with the loss, or nothing
    for wrong in (
        -descent(0.0, u),
        -descent.drift(u) + descent.corrector(u),
        descent(0.0, u),
        -(descent.drift(u) + ridge) - descent.corrector(u) - ridge,
    ):
        assert worst_mean(rise, wrong, slack) > 1.5
    assert worst_covariance(rise, dynamics.diffusion(u), c) < 1
    assert worst_covariance(rise, descent.diffusion(u), c) > 1.5


def test_runs_of_ascent_on_matrix_pca():
    """From inside, where the ridge holds x back against the ascent."""
    n, c, decay = 500, 0.5, 3.0
    problem = tl.SpikedTensor(n, 2, snr=0.5, ridge=decay)
    start = problem.model(at=(0.4, 0.2), generator=torch.Generator().manual_seed(2))
    model = copies(problem, start, 60)
    optimizer = ascent(c / n, decay)(model)
    measured = train(problem, model, optimizer, 300, every=50)
    dynamics, u0 = problem.dynamics(optimizer), measured.initial[0]
    assert misses(measured, dynamics.solve(u0, measured.times), slack=4 / n) < 1
    naive = problem.dynamics(step_size=c)
    assert misses(measured, naive.solve(u0, measured.times), slack=4 / n) > 3
    without = torch.optim.SGD(model.parameters(), lr=c / n, maximize=True)
    with pytest.raises(ValueError, match="closed form, got maximize"):
        tl.SpikedTensor(n, 2, snr=0.5).dynamics(without).exact_fixed_points()


def test_ascent_at_the_equator_and_in_the_small_noise_limit():
    problem = tl.SpikedTensor(100, 2, snr=0.5)
    optimizer = torch.optim.SGD(problem.model().parameters(), lr=0.01, maximize=True)
    u = torch.tensor([0.1, 0.7], dtype=torch.float64)
    scale = torch.tensor([10.0, 1.0]).double()
    drift = problem.equator(optimizer).drift(u * scale) / scale
    tilted = tl.SpikedTensor(100, 2, snr=0.5).dynamics(optimizer)(0.0, u)
    # m is negligible in R^2 at the equator
    torch.testing.assert_close(drift, tilted, rtol=0.1, atol=0.0)
    mixture = binary().small_noise()
    ascending = mixture.dynamics(
        torch.optim.SGD(mixture.model().parameters(), lr=0.01, maximize=True)
    )
    u = torch.tensor([1.0, -1.2, 0.8, -0.3, 0.5, 0.1, 0.6]).double()
    torch.testing.assert_close(ascending(0.0, u), -mixture.dynamics(step_size=4.0)(0.0, u))


# --- momentum -------------------------------------------------------------------------------------


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_sets_the_radius_of_matrix_pca(nesterov):
    """r2 -> c/(1 - beta), plain and Nesterov; a corrector g/(1 - beta) would leave it at c."""
    n, c, beta = 1000, 0.2, 0.8
    problem = tl.SpikedTensor(n, 2, snr=0.01)
    model = copies(problem, problem.model(at=(0.0, 1.0)), 20)
    optimizer = torch.optim.SGD(model.parameters(), lr=c / n, momentum=beta, nesterov=nesterov)
    measured = train(problem, model, optimizer, 4000, every=50)
    late = measured["r2"][:, 40:].mean(1)
    allowed = Z * float(late.std()) / 20**0.5 + 20 / n  # five steps' memory, at rate 4 r2/n each
    (stable,) = [p for p in problem.dynamics(optimizer).exact_fixed_points() if p.stable]
    assert float(stable.u[1]) == pytest.approx(c / (1 - beta))
    assert abs(float(late.mean()) - float(stable.u[1])) < allowed
    # negative control: the drift and the corrector both 1/(1 - beta) times
    assert abs(float(late.mean()) - c) > 10 * allowed


def test_dampening_undoes_what_momentum_does():
    n, beta = 500, 0.6
    problem = tl.SpikedTensor(n, 2, snr=1.5)
    model = copies(problem, problem.model(at=(0.5, 0.3)), 50)
    optimizer = torch.optim.SGD(model.parameters(), lr=1 / n, momentum=beta, dampening=beta)
    measured = train(problem, model, optimizer, 300, every=30)
    u0 = measured.initial[0]
    right = problem.dynamics(optimizer).solve(u0, measured.times)
    # torch's first gradient comes in undamped
    assert misses(measured, right, slack=20 / n) < 1
    naive = problem.dynamics(step_size=1.0, momentum=beta).solve(u0, measured.times)
    assert misses(measured, naive, slack=20 / n) > 3


# --- parameter groups -----------------------------------------------------------------------------


def grouped(model, lr, first, second, order=(0, 1)):
    groups = [
        {"params": [model.first.weight], **first, "lr": lr * first.get("lr", 1.0)},
        {"params": [model.second.weight], **second, "lr": lr * second.get("lr", 1.0)},
    ]
    return torch.optim.SGD([groups[i] for i in order], lr=lr)


def speeds(first, second):
    return {"first.weight": first, "second.weight": second}


DIFFERENT = {
    "lr": ({}, {"lr": 0.4}),
    "reference is v": ({"lr": 2.0}, {}),
    "decay": ({"weight_decay": 0.4}, {"weight_decay": 0.1}),
    "one ascends": ({"maximize": True}, {"lr": 0.5}),
}


@pytest.mark.filterwarnings("ignore:the optimizer's weight_decay")
@pytest.mark.parametrize("case", DIFFERENT)
def test_one_step_of_layers_that_differ(case):
    """Mean and covariance of a real step, and that other assignments of the factors fail."""
    c = 4.0
    problem = binary(dtype=torch.float64)
    start = visible_start(problem)
    u = u_of(problem, start)
    order = (1, 0) if case == "reference is v" else (0, 1)

    def make(model):
        return grouped(model, c / 400, *DIFFERENT[case], order=order)

    rise = one_step(problem, start, make, samples=10_000)
    dynamics = problem.dynamics(make(copies(problem, start, 1)))
    # the lr of the reference is c/400 in every case
    slack = 16 / 400 * dynamics.corrector(u).abs() + 2e-3
    assert worst_mean(rise, dynamics(0.0, u), slack) < 1
    assert worst_covariance(rise, dynamics.diffusion(u), c) < 1
    # negative control: the settings of the first group for both layers, and layers swapped
    same = SGDSettings.of_group(make(copies(problem, start, 1)).param_groups[0], 400)
    naive = problem.dynamics(step_size=c)
    naive.limit = SGDLimit(same)
    assert worst_mean(rise, naive(0.0, u), slack) > 1.5
    if case != "decay":
        assert worst_covariance(rise, naive.diffusion(u), c) > 1.5
    layers = dynamics.layers
    first, second = layers.settings.values()
    swapped = Layers(layers.reference, {"first.weight": second, "second.weight": first})
    dynamics.limit = SGDLimit(layers.reference, swapped)
    assert worst_mean(rise, dynamics(0.0, u), slack) > 1.5


def test_one_step_of_layers_of_a_wide_network():
    """XOR, K = 4, 22 statistics, mean and covariance; the second group's lr for both fails."""
    c = 4.0
    problem = tl.GaussianMixture.xor(dim=400, width=4, snr=1.0, dtype=torch.float64)
    start = visible_start(problem)
    u = u_of(problem, start)

    def make(model):
        return grouped(model, c / 400, {"lr": 1.0}, {"lr": 2.5})

    rise = one_step(problem, start, make, samples=10_000)
    dynamics = problem.dynamics(make(copies(problem, start, 1)))
    slack = 16 / 400 * dynamics.corrector(u).abs() + 2e-3
    assert worst_mean(rise, dynamics(0.0, u), slack) < 1
    assert worst_covariance(rise, dynamics.diffusion(u), c) < 1
    naive = problem.dynamics(step_size=2.5 * c)
    assert worst_mean(rise, naive(0.0, u), slack) > 1.5
    assert worst_covariance(rise, naive.diffusion(u), c) > 1.5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the optimizer's weight_decay")
def test_layers_in_the_small_noise_limit():
    """snr = inf: runs of SGD on the means themselves, each layer with its own settings."""
    n = 400
    problem = tl.GaussianMixture.binary(dim=n, width=2, snr=math.inf)
    model = copies(problem, visible_start(problem), 60)
    first, second = {"weight_decay": 0.3}, {"lr": 0.3, "momentum": 0.5, "weight_decay": 0.1}
    optimizer = grouped(model, 1 / n, first, second)
    dynamics = problem.dynamics(optimizer)
    measured = train(problem, model, optimizer, 600, every=100)
    u0 = measured.initial[0]
    assert misses(measured, dynamics.solve(u0, measured.times), slack=4 / n) < 1
    for settings in dynamics.layers.settings.values():
        naive = problem.dynamics(step_size=1.0)
        naive.limit = SGDLimit(settings)
        assert misses(measured, naive.solve(u0, measured.times), slack=4 / n) > 1.5


@pytest.mark.filterwarnings("ignore:the optimizer's weight_decay")
def test_runs_of_layers_that_differ():
    """lr, momentum, dampening and ridge, all of them the layer's own."""
    n, runs = 500, 60
    problem = binary(dim=n, snr=2.0)
    first = {"momentum": 0.5, "weight_decay": 0.1}
    second = {"lr": 0.5, "momentum": 0.6, "dampening": 0.2, "weight_decay": 0.3}
    model = copies(problem, visible_start(problem), runs)
    optimizer = grouped(model, 1 / n, first, second)
    dynamics = problem.dynamics(optimizer)
    assert dynamics.layers.speeds == pytest.approx(speeds(2.0, 0.5 * 0.8 / 0.4))
    measured = train(problem, model, optimizer, n, every=100)
    u0 = measured.initial[0]
    assert misses(measured, dynamics.solve(u0, measured.times), slack=8 / n) < 1
    # negative controls: a factor rho_W instead of rho_W^2 in the corrector; one group for both
    layers = dynamics.layers
    halved = SGDSettings(0.5, 0.0, weight_decay=0.1)
    wrong = problem.dynamics(step_size=0.5)
    plain = SGDSettings(1.0, weight_decay=0.1)
    wrong.limit = SGDLimit(halved, Layers(halved, {**layers.settings, "first.weight": plain}))
    assert wrong.layers.speeds["first.weight"] == dynamics.layers.speeds["first.weight"]
    assert misses(measured, wrong.solve(u0, measured.times), slack=8 / n) > 1.5
    for settings in layers.settings.values():
        naive = problem.dynamics(step_size=1.0)
        naive.limit = SGDLimit(settings)
        assert misses(measured, naive.solve(u0, measured.times), slack=8 / n) > 3


def test_a_frozen_layer_does_not_move():
    problem = binary(dim=300, snr=2.0)
    for frozen in ("first", "second"):
        model = copies(problem, visible_start(problem), 40)
        moving = model.second if frozen == "first" else model.first
        optimizer = torch.optim.SGD(moving.parameters(), lr=1 / 300)
        measured = train(problem, model, optimizer, 300, every=50)
        dynamics, u0 = problem.dynamics(optimizer), measured.initial[0]
        assert misses(measured, dynamics.solve(u0, measured.times), slack=8 / 300) < 1
        naive = problem.dynamics(step_size=1.0).solve(u0, measured.times)
        assert misses(measured, naive, slack=8 / 300) > 2
        still = slice(2, None) if frozen == "first" else slice(0, 2)
        assert not dynamics(0.0, u0)[still].any()
        assert not dynamics.diffusion(u0)[still].any()
        # requires_grad=False is the same as not being held
        model.get_parameter(f"{frozen}.weight").requires_grad_(False)
        both = problem.dynamics(torch.optim.SGD(model.parameters(), lr=1 / 300))
        assert both.layers == dynamics.layers


def test_layers_alike_go_on_as_one():
    problem = binary(ridge=0.1)
    model, u = problem.model(), torch.linspace(0.1, 1.0, 7)
    one = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.5, weight_decay=0.1)
    options = {"momentum": 0.5, "weight_decay": 0.1}
    two = grouped(model, 0.01, options, options)
    a, b = problem.dynamics(one), problem.dynamics(two)
    assert b.layers is None
    assert a.settings == b.settings
    assert torch.equal(a(0.0, u), b(0.0, u))
    # written as layers they give the same
    c = problem.dynamics(one)
    both = dict.fromkeys(["first.weight", "second.weight"], a.settings)
    c.limit = SGDLimit(a.settings, Layers(a.settings, both))
    torch.testing.assert_close(c(0.0, u), a(0.0, u))
    torch.testing.assert_close(c.diffusion(u), a.diffusion(u))


def test_layers_of_other_modules_and_of_wide_networks():
    problem = tl.GaussianMixture.xor(dim=40, width=4, snr=2.0)
    network = torch.nn.Sequential(
        torch.nn.Linear(40, 4, bias=False), torch.nn.ReLU(), torch.nn.Linear(4, 1, bias=False)
    )
    groups = [
        {"params": [p], "lr": lr} for p, lr in zip(network.parameters(), (0.1, 0.3), strict=True)
    ]
    dynamics = problem.dynamics(torch.optim.SGD(groups, lr=0.1))
    assert dynamics.layers.speeds == pytest.approx(speeds(1.0, 3.0))
    assert dynamics.describe()["second.step_size"] == pytest.approx(12.0)
    assert dynamics.on(dynamics.field.of_neurons(3)).limit == dynamics.limit


def test_layers_that_cannot_be_told():
    problem = binary()
    other = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match="holds neither"):
        problem.dynamics(torch.optim.SGD([other], lr=0.1))
    a, b = problem.model(), problem.model()
    twice = torch.optim.SGD(
        [{"params": a.parameters()}, {"params": b.parameters(), "lr": 0.2}], lr=0.1
    )
    with pytest.raises(ValueError, match="several in parameter groups that differ"):
        problem.dynamics(twice)
    still = torch.optim.SGD(
        [
            {"params": a.first.parameters(), "weight_decay": 0.1},
            {"params": a.second.parameters()},
        ],
        lr=0.0,
    )
    with pytest.raises(ValueError, match="learning rate > 0 in a parameter group, got 0 in all"):
        problem.dynamics(still)
    for optimizer, message in (
        (grouped(a, 0.1, {}, {"weight_decay": 0.2}), "of second.weight is not the problem's ridge"),
        (torch.optim.SGD(a.parameters(), lr=0.1, weight_decay=0.2), "=0.2 is not the problem's"),
    ):
        for call in (problem.dynamics, problem.reduced_chain):
            with pytest.warns(UserWarning, match=message) as caught:
                call(optimizer)
            assert caught[0].filename == __file__  # it points to the user's line


def test_spiked_tensors_have_one_group():
    problem = tl.SpikedTensor(10, 2, snr=1.0)
    groups = [{"params": problem.model().parameters()} for _ in range(2)]
    with pytest.raises(ValueError, match="a spiked tensor has one parameter"):
        problem.dynamics(torch.optim.SGD(groups, lr=0.1))


# --- momentum is plain SGD in another time --------------------------------------------------------


def worst_laws(a, b, slack):
    """Means and covariances of two ensembles at equal rows, largest |z|-allowance, a over b."""
    rows = list(itertools.product(range(1, len(a)), range(a.values.shape[-1])))
    worst = 0.0
    for t, i in rows:
        x, y = a.values[:, t, i], b.values[:, t, i]
        error = ((x.var() + y.var()) / len(x)) ** 0.5
        worst = max(worst, float((x.mean() - y.mean()).abs() / (Z * error + slack)))
        for j in range(i, a.values.shape[-1]):
            products = [
                (p[:, t, i] - p[:, t, i].mean()) * (p[:, t, j] - p[:, t, j].mean())
                for p in (a.values, b.values)
            ]
            error = (sum(p.var() for p in products) / len(x)) ** 0.5
            scale = float(a.values[:, t, i].std() * a.values[:, t, j].std())
            gap = (products[0].mean() - products[1].mean()).abs()
            worst = max(worst, float(gap / (Z * error + slack * scale)))
    return worst


def test_momentum_is_plain_sgd_in_another_time():
    """beta, delta against delta/(1 - beta) at t/(1 - beta): means and covariances at four times."""
    n, c, beta, runs = 400, 0.5, 0.5, 400
    problem = tl.SpikedTensor(n, 2, snr=2.0)
    start = problem.model(at=(0.3, 0.6), generator=torch.Generator().manual_seed(2))

    def path(c, seed, steps, **options):
        model = copies(problem, start, runs)
        optimizer = torch.optim.SGD(model.parameters(), lr=c / n, **options)
        return train(problem, model, optimizer, steps, every=steps // 4, seed=seed)

    heavy = path(c, 1, 200, momentum=beta)
    plain = path(c / (1 - beta), 2, 200)
    torch.testing.assert_close(plain.times, heavy.times / (1 - beta))
    slack = 8 / n  # one step's memory
    assert worst_laws(heavy, plain, slack) < 1
    # negative controls: the same limit time, and the same step
    assert worst_laws(heavy, path(c / (1 - beta), 2, 100), slack) > 2
    assert worst_laws(heavy, path(c, 2, 200), slack) > 2


# --- what has no limit ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.LBFGS, torch.optim.RMSprop])
def test_other_optimizers_are_told_what_works(kind):
    # mixtures have gradients of single samples, which second moments need
    mixtures = [binary()] if kind is torch.optim.LBFGS else []
    for problem in (*mixtures, tl.SpikedTensor(10, 2, snr=1.0)):
        optimizer = kind(problem.model().parameters(), lr=0.1)
        with pytest.raises(TypeError, match=r"SGD.*NormalizedSGD.*recording works with any"):
            problem.dynamics(optimizer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.0}, r"momentum in \[0, 1\)"),
        ({"momentum": 0.5, "dampening": 1.5}, r"dampening in \[0, 1\)"),
        ({"momentum": 0.5, "dampening": -0.5}, "dampening"),
    ],
)
def test_options_that_torch_takes_and_the_theory_does_not(options, message):
    for problem in (binary(), tl.SpikedTensor(10, 2, snr=1.0)):
        optimizer = torch.optim.SGD(problem.model().parameters(), lr=0.1, **options)
        with pytest.raises(ValueError, match=message):
            problem.dynamics(optimizer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -0.1}, "learning rate"),
        ({"momentum": -0.1}, "momentum"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"nesterov": True}, "Nesterov"),
        ({"nesterov": True, "momentum": 0.5, "dampening": 0.1}, "dampening"),
    ],
)
def test_what_torch_refuses_itself(options, message):
    with pytest.raises(ValueError, match=message):
        torch.optim.SGD([torch.nn.Parameter(torch.zeros(3))], **{"lr": 0.1, **options})


def test_chains_say_that_they_need_plain_sgd():
    problem = binary(dim=20)
    model = problem.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, maximize=True)
    with pytest.raises(ValueError, match="plain SGD for the reduced chain"):
        problem.reduced_chain(optimizer)
