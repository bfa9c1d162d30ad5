"""Any head: averages, derivatives and noise against what computes them in another way."""

import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional

import torchlimits as tl
from torchlimits.problems.network.gaussian import PreActivations
from torchlimits.problems.network.kinks import Kinks
from torchlimits.problems.network.labels import (
    FlippedLabels,
    FunctionLabels,
    NoisyLabels,
    WithTrailing,
)
from torchlimits.problems.network.moments import Integrals
from torchlimits.problems.network.nodes import Rule, gauss_hermite, sobol

SMOOTH = Kinks(in_h=False, steps_in_h=False, in_theta=False, in_labels=False)


def classes(N=60, **options):
    """Three classes, two hidden layers behind the first one, biases."""
    torch.manual_seed(1)
    given = {
        "dim": N, "width": 3, "snr": 4.0, "means": torch.eye(3, N),
        "head": nn.Sequential(nn.GELU(), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)),
        "loss": functional.cross_entropy, "labels": torch.tensor([0, 1, 2]),
    }  # fmt: skip
    return tl.NetworkProblem(**(given | options))


def regression(N=60, **options):
    """A function of two coordinates, learned by two neurons without biases."""
    torch.manual_seed(2)
    given = {
        "dim": N, "width": 2, "snr": 1.0, "directions": torch.eye(2, N), "bias": False,
        "head": nn.Sequential(nn.Tanh(), nn.Linear(2, 1)), "loss": functional.mse_loss,
        "labels": lambda x, component: (x[:, 0] * x[:, 1]).tanh(),
    }  # fmt: skip
    return tl.NetworkProblem(**(given | options))


def one_neuron():
    return regression(width=1, head=nn.Sequential(nn.Tanh(), nn.Linear(1, 1)))


def like(mixture, **options):
    """A mixture's network, data and loss, without its closed formulas."""
    head = nn.Sequential(nn.ReLU(), nn.Linear(mixture.width, 1, bias=False))
    loss = functional.binary_cross_entropy_with_logits
    given = {"labels": mixture.labels, "means": mixture.means, "snr": mixture.snr}
    given |= {"weights": mixture.weights, "ridge": mixture.ridge}
    return tl.NetworkProblem(
        dim=mixture.dim, width=mixture.width, head=head, loss=loss, bias=False, **(given | options)
    )


def points(problem, count=4, seed=0):
    space = problem.dynamics(step_size=1.0).field.space
    return space.random(count, torch.Generator().manual_seed(seed))


# --- against the closed formulas of the ReLU mixtures ---------------------------------------------

MIXTURES = {
    "binary": tl.GaussianMixture.binary(50, 2, snr=2.0),
    "weighted": tl.GaussianMixture.binary(50, 2, snr=2.0, weights=[0.7, 0.3]),
    "xor": tl.GaussianMixture.xor(50, 4, snr=4.0),
}


@pytest.mark.parametrize("reads", ["component", "coordinates"])
@pytest.mark.parametrize("name", MIXTURES)
def test_relu_mixtures_are_a_special_case(name, reads):
    mixture = MIXTURES[name]
    labels = mixture.labels if reads == "component" else lambda x, a: mixture.labels[a]
    problem = like(mixture, labels=labels)
    options = {"step_size": 1.3, "momentum": 0.3, "batch_size": 2}
    ours, theirs = problem.dynamics(nodes=2**14, **options), mixture.dynamics(**options)
    u = points(problem, 8 if mixture.width == 2 else 3)
    assert [n.replace("head.1.weight[0,", "v[") for n in ours.names] == theirs.names
    error = 0.7 * (ours(0.0, u) - theirs(0.0, u)).abs()  # in units of plain SGD's speed
    assert float(error.max()) < 1e-3
    assert float(error.amax(-1).median()) < 2e-4
    # the corrector is seen
    assert float((ours.drift(u) - theirs(0.0, u)).abs().amax(-1).median()) > 0.02
    D, exact = ours.diffusion(u), theirs.diffusion(u)
    torch.testing.assert_close(D, exact, rtol=0, atol=5e-3 * float(exact.abs().max()))


def test_layers_of_a_relu_mixture_that_differ():
    """Learning rates, decay and batches of each layer, and the band, by both ways."""
    mixture = MIXTURES["binary"]
    problem = like(mixture)

    def limits(model, head):
        first, second = model.first.weight, model.get_parameter(head)
        groups = [{"params": [first], "weight_decay": 0.0}, {"params": [second], "lr": 0.06}]
        optimizer = torch.optim.SGD(groups, lr=0.02, momentum=0.5, weight_decay=0.0)
        return {"optimizer": optimizer, "batch_size": 3}

    ours = problem.dynamics(**limits(problem.model(), "head.1.weight"), nodes=2**14)
    theirs = mixture.dynamics(**limits(mixture.model(), "second.weight"))
    u = points(problem, 3)
    torch.testing.assert_close(ours(0.0, u), theirs(0.0, u), rtol=0, atol=4e-3)
    one, other = (d.solve(u[0], [0.0, 1.0], band=True) for d in (ours, theirs))
    torch.testing.assert_close(one.values, other.values, rtol=0, atol=2e-3)
    torch.testing.assert_close(one.std, other.std, rtol=0.02, atol=1e-4)
    alike = mixture.dynamics(step_size=1.0, momentum=0.5, batch_size=3)
    assert float((ours(0.0, u) - alike(0.0, u)).abs().max()) > 0.05


@pytest.mark.parametrize("name", ["binary", "xor"])
def test_derivatives_are_right_at_kinks(name):
    mixture = MIXTURES[name]
    problem = like(mixture)
    ours, theirs = problem.dynamics(step_size=1.0, nodes=2**14), mixture.dynamics(step_size=1.0)
    u = points(problem, 3)
    exact = theirs.jacobian(u)
    size = exact.abs().amax((-1, -2))
    assert float(((ours.jacobian(u) - exact).abs().amax((-1, -2)) / size).max()) < 1e-2
    # as if nothing jumped: what autograd through the nodes returns
    field = ours.field
    field.kinks = SMOOTH
    blind = ours.on(type(field)(field.setting, dim=50, rule=field.rule, kinks=SMOOTH)).jacobian(u)
    assert float(((blind - exact).abs().amax((-1, -2)) / size).max()) > 2e-2


def test_accuracy_and_risk_of_a_relu_mixture():
    mixture = MIXTURES["xor"]
    dynamics = like(mixture).dynamics(step_size=1.0, nodes=2**14)
    u = points(like(mixture), 3)
    assert float((dynamics.accuracy(u) - mixture.accuracy(u)).abs().max()) < 3e-3


# --- against naive integrals ----------------------------------------------------------------------

PROBLEMS = {
    "classes": lambda: classes(),
    "classes, flips": lambda: classes(label_flips=0.2),
    "regression": lambda: regression(),
    "regression, noise": lambda: regression(label_noise=0.5),
    "relu": lambda: like(MIXTURES["binary"]),
}


def naive_terms(problem, u, seed=3, count=2**15):
    """-f and g by autograd of the loss of samples that are drawn one by one, all directions apart.

    No node, no Stein's lemma: E[g x^T] and E[g P^T] as they stand, over K + d dimensions.
    """
    setting = problem.setting
    theta, b, m, R = setting.layout.split(u)
    A, d = setting.coordinates.shape
    K = m.shape[0]
    normal, _ = sobol(K + d, count, seed)
    values, vectors = torch.linalg.eigh(R)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.mT
    sums = [torch.zeros_like(x) for x in (theta, b, m, R, R)]
    for a in range(A):
        x = setting.coordinates[a] + problem.snr**-0.5 * normal[:, :d]
        P = problem.snr**-0.5 * normal[:, d:] @ root
        component = torch.full((count,), a)
        targets, shares = setting.labels.law(x, component)
        for i in range(shares.shape[1]):
            by_theta, g = setting.sample_gradients(theta, x @ m.mT + P + b, targets[:, i], 2**13)
            w = shares[:, i] / count * setting.shares[a]
            each = (w @ by_theta, w @ g, (w[:, None] * g).mT @ x, (w[:, None] * g).mT @ P,
                    (w[:, None] * g).mT @ g)  # fmt: skip
            sums = [s + e for s, e in zip(sums, each, strict=True)]
    by_theta, gbar, signal, across, gram = sums
    zero = [torch.zeros_like(x) for x in (theta, b, m)]
    drift = setting.layout.join(-by_theta, -gbar, -signal, -across - across.mT)
    return drift, setting.layout.join(*zero, gram / problem.snr)


@pytest.mark.parametrize("name", PROBLEMS)
def test_terms_are_naive_integrals(name):
    problem = PROBLEMS[name]()
    (u,) = points(problem, 1, seed=5)
    dynamics = problem.dynamics(step_size=1.0, nodes=2**14)
    found = dynamics.field.terms(u)
    first, second = naive_terms(problem, u), naive_terms(problem, u, seed=4)
    for ours, one, two in zip(found, first, second, strict=True):
        # both rules err: by what two seeds of the naive one differ
        allowed = 10 * float((one - two).abs().max()) + 1e-6
        assert float((ours - one).abs().max()) < allowed < 0.02 * float(ours.abs().max())


@pytest.mark.parametrize("name", PROBLEMS)
def test_risk_and_accuracy_are_those_of_fresh_data(name):
    problem = PROBLEMS[name]()
    torch.manual_seed(0)
    model = problem.model(dtype=torch.float64)
    u = problem.statistics(dict(model.named_parameters()))
    x, y = problem.sample(40_000, dtype=torch.float64)
    with torch.no_grad():
        output = model(x)
    dynamics = problem.dynamics(step_size=1.0)
    losses = problem.setting.losses(output, y)
    u = u.detach()
    z = (losses.mean() - dynamics.risk(u)) / (losses.std() / len(losses) ** 0.5)
    assert abs(float(z)) < 4
    if name.startswith("regression"):
        with pytest.raises(ValueError, match="labels that are classes"):
            dynamics.accuracy(u)
        return
    if "classes" in name:
        right = (output.argmax(-1) == y).double()
    else:  # a logit of 0 counts half: no neuron is active
        right = ((1 + output.sign() * (2 * y - 1)) / 2)[:, 0]
    z = (right.mean() - dynamics.accuracy(u)) / (right.std() / len(y) ** 0.5)
    assert abs(float(z)) < 4


@pytest.mark.parametrize("name", PROBLEMS)
def test_covariance_of_a_step_is_that_of_steps(name):
    """Increments of real models, whose W is large, from one start; N is small, so is 1/N not."""
    problem = PROBLEMS[name]()
    torch.manual_seed(0)
    runs, lr = 20_000, 0.5 / problem.dim
    model = problem.model(dtype=torch.float64)
    parameters = dict(model.named_parameters())
    before = problem.statistics(parameters)
    x, y = problem.sample(runs, dtype=torch.float64)

    def gradients(parameters, x, y):
        output = torch.func.functional_call(model, parameters, (x[None],))
        return problem.loss(output, y[None])

    one = torch.func.vmap(torch.func.grad(gradients), in_dims=(None, 0, 0), chunk_size=4096)
    with torch.no_grad():
        by = one(parameters, x, y)
        stepped = {name: p - lr * by[name] for name, p in parameters.items()}
        change = (problem.statistics(stepped) - before) / lr
    dynamics = problem.dynamics(step_size=0.5, nodes=2**14)
    predicted = dynamics.diffusion(before) / 0.5
    seen = change.mT.cov()
    sd = predicted.diagonal().sqrt()
    error = (seen - predicted) / torch.outer(sd, sd).clamp_min(1e-12)
    # R's increment has |x_perp|^2/N in place of 1: 2/N in variance beside
    assert float(error[sd > 1e-6][:, sd > 1e-6].abs().max()) < 0.12
    drift = dynamics.field.terms(before)
    mean = drift[0] + 0.5 * (1 - (problem.setting.layout.width + 2) / problem.dim) * drift[1]
    z = (change.mean(0) - mean) / (change.std(0) / runs**0.5).clamp_min(1e-9)
    assert float(z.abs().max()) < 5


# --- derivatives ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["classes", "classes, flips", "regression, noise"])
def test_derivatives_are_differences(name):
    problem = PROBLEMS[name]()
    dynamics = problem.dynamics(step_size=1.0, nodes=512, batch_size=2)
    u = points(problem, 2, seed=7)
    J = dynamics.jacobian(u)
    step = 1e-5
    for j in range(u.shape[-1]):
        e = torch.zeros_like(u)
        e[:, j] = step
        column = (dynamics(0.0, u + e) - dynamics(0.0, u - e)) / (2 * step)
        torch.testing.assert_close(J[:, :, j], column, rtol=1e-5, atol=1e-6)


def test_derivatives_of_random_labels_weigh_every_target():
    problem = classes(label_flips=torch.tensor([[0.5, 0.5, 0], [0, 1, 0], [0.2, 0.3, 0.5]]))
    setting, rule = problem.setting, Rule(3, 64, seed=0, smooth=True)
    integrals = Integrals(setting, rule, SMOOTH)
    theta, b, m, R = setting.layout.split(points(problem, 1))
    F = PreActivations(b, m, R[:, None], setting.coordinates, setting.basis, 0.25).loadings
    found = integrals.derivatives(theta, F)
    step = 1e-5 * torch.randn(F.shape, generator=torch.Generator().manual_seed(0)).double()
    up, down = (integrals.values(theta, F + sign * step) for sign in (1, -1))
    change = torch.einsum("skljf,sjf->skl", found.gram_F, step)
    torch.testing.assert_close(change, (up.gram - down.gram) / 2, rtol=1e-5, atol=1e-12)


def test_components_that_are_never_drawn_do_not_count():
    one = classes(weights=[0.4, 0.6, 0.0], label_flips=0.1)
    other = classes(
        means=torch.eye(2, 60), directions=torch.eye(3, 60), weights=[0.4, 0.6],
        labels=torch.tensor([0, 1]), label_flips=0.1,
    )  # fmt: skip
    u = points(one, 2)
    for what in (lambda d: d(0.0, u), lambda d: d.jacobian(u), lambda d: d.diffusion(u)):
        a, b = (what(p.dynamics(step_size=1.0, nodes=128)) for p in (one, other))
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_second_derivatives_are_refused():
    dynamics = classes().dynamics(step_size=1.0, nodes=64)
    u = points(classes(), 1).requires_grad_()
    with pytest.raises(NotImplementedError, match="take differences"):
        torch.autograd.grad(dynamics(0.0, u).sum(), u, create_graph=True)


# --- kinks ----------------------------------------------------------------------------------------


def of_head(head, loss=functional.mse_loss, width=3, **options):
    torch.manual_seed(0)
    return regression(width=width, head=head, loss=loss, **options)


class Sign(nn.Module):
    def forward(self, h):
        return h.sign()


KINKS = {
    "smooth": (lambda: classes(), SMOOTH),
    "erf": (lambda: of_head(nn.Sequential(nn.Tanh(), nn.Linear(3, 1))), SMOOTH),
    "steep": (
        lambda: of_head(nn.Sequential(nn.Softplus(beta=20), nn.Linear(3, 1))), SMOOTH,
    ),
    "relu": (
        lambda: of_head(nn.Sequential(nn.ReLU(), nn.Linear(3, 1))),
        SMOOTH._replace(in_h=True),
    ),
    "leaky": (
        lambda: of_head(nn.Sequential(nn.LeakyReLU(0.5), nn.Linear(3, 1))),
        SMOOTH._replace(in_h=True),
    ),
    "sign": (
        lambda: of_head(nn.Sequential(Sign(), nn.Linear(3, 1))),
        SMOOTH._replace(in_h=True, steps_in_h=True),
    ),
    "relu behind a layer": (
        lambda: of_head(nn.Sequential(nn.Tanh(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1))),
        SMOOTH._replace(in_h=True, in_theta=True),
    ),
    "absolute loss": (
        lambda: of_head(nn.Sequential(nn.Tanh(), nn.Linear(3, 1)), functional.l1_loss),
        SMOOTH._replace(in_h=True, in_theta=True),
    ),
    "sign of an input": (
        lambda: of_head(
            nn.Sequential(nn.Tanh(), nn.Linear(3, 1)), labels=lambda x, a: x[:, 0].sign()
        ),
        SMOOTH._replace(in_labels=True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KINKS)
def test_kinks_are_found(name):
    make, kinks = KINKS[name]
    problem = make()
    assert problem.kinks._replace(steps_in_h=kinks.steps_in_h) == kinks
    dynamics = problem.dynamics(step_size=1.0, nodes=64)
    assert dynamics.field.rule.smooth == kinks.smooth
    u = points(problem, 1)
    assert bool(dynamics(0.0, u).isfinite().all())
    if kinks.in_theta:
        with pytest.raises(NotImplementedError, match="jump where the head's own parameters"):
            dynamics.jacobian(u)
        with pytest.raises(NotImplementedError, match="smooth activation"):
            dynamics.solve(u[0], [0.0, 0.1], band=True)
    else:
        assert bool(dynamics.jacobian(u).isfinite().all())


# --- nodes and rules ------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [gauss_hermite(2, 100), gauss_hermite(0, 5), sobol(3, 2**10, 1)])
def test_nodes_integrate_normals(rule):
    points, weights = rule
    assert float(weights.sum()) == pytest.approx(1)
    assert float((weights @ points).abs().sum()) < 1e-2
    assert float((weights @ points.square() - 1).abs().sum()) < 3e-2


def test_smooth_heads_of_few_dimensions_have_a_hermite_rule():
    few = one_neuron().dynamics(step_size=1.0).field.rule
    many = regression(width=2).dynamics(step_size=1.0).field.rule
    kinked = like(MIXTURES["binary"]).dynamics(step_size=1.0).field.rule
    assert (few.hermite, many.hermite, kinked.hermite) == (True, False, False)
    assert few.dims == 3
    assert few.other().most < few.most
    assert many.other().seed != many.seed


def test_the_error_of_the_nodes_is_that():
    problem = one_neuron()
    fine = problem.dynamics(step_size=1.0, nodes=40**3)
    u = points(problem, 40, seed=9)
    for count in (6**3, 10**3):
        coarse = problem.dynamics(step_size=1.0, nodes=count)
        error = float((coarse(0.0, u) - fine(0.0, u)).abs().amax(-1).median())
        assert error / 3 < coarse.field.error < 100 * error
        assert coarse.rtol >= min(coarse.field.error, 1e-3)


def test_any_number_of_starts_at_once():
    problem = classes()
    dynamics = problem.dynamics(step_size=1.0, nodes=128)
    u = points(problem, 6).reshape(2, 3, -1)
    rows = torch.stack([dynamics(0.0, x) for x in u.flatten(0, 1)]).reshape(u.shape)
    torch.testing.assert_close(dynamics(0.0, u), rows, rtol=1e-10, atol=1e-12)
    assert dynamics(0.0, u.float()).dtype == torch.float32
    assert dynamics.risk(u).shape == (2, 3)


# --- label laws -----------------------------------------------------------------------------------


def test_labels_are_drawn_from_their_law():
    base = FunctionLabels(lambda x, a: (x[:, 0] > 0).long() + a)
    labels = FlippedLabels(base, torch.tensor([[0.6, 0.3, 0.1], [0.0, 0.5, 0.5], [0.2, 0.2, 0.6]]))
    x, a = torch.tensor([[1.0], [-1.0]]), torch.tensor([1, 0])
    targets, shares = labels.law(x, a)
    drawn = labels.sample(
        x.repeat_interleave(20_000, 0), a.repeat_interleave(20_000),
        torch.Generator().manual_seed(0),
    ).reshape(2, -1)  # fmt: skip
    seen = torch.stack([(drawn == c).double().mean(-1) for c in range(3)], -1)
    assert torch.equal(targets, torch.tensor([[0, 1, 2]] * 2))
    assert float((seen - shares).abs().max()) < 4 * math.sqrt(0.25 / 20_000)
    assert float(seen[1, 2]) == pytest.approx(0.1, abs=0.01)


def test_noise_of_labels_is_normal():
    labels = NoisyLabels(FunctionLabels(lambda x, a: x), noise=0.7)
    x, a = torch.zeros(50_000, 2), torch.zeros(50_000, dtype=torch.long)
    drawn = labels.sample(x, a, torch.Generator().manual_seed(0))
    targets, shares = labels.law(x[:1].double(), a[:1])
    assert targets.shape == (1, 81, 2)
    for power, moment in ((2, 1), (4, 3), (6, 15)):
        exact = 0.7**power * moment
        assert float((shares[0] @ targets[0] ** power)[0]) == pytest.approx(exact)
        assert float((drawn**power).mean()) == pytest.approx(exact, rel=0.06)


def test_noise_has_as_many_points_as_the_loss_needs():
    """Three where the loss is quadratic; the results are those of nine."""
    few = regression(label_noise=0.5)
    many = regression(label_noise=0.5)
    assert few.labels.labels.points == 3
    object.__setattr__(many.setting, "labels", NoisyLabels(few.labels.labels.labels, 0.5))
    object.__setattr__(many.setting, "labels", WithTrailing(many.setting.labels))
    u = points(few, 3)
    one, other = (p.dynamics(step_size=1.0, nodes=256) for p in (few, many))
    torch.testing.assert_close(one(0.0, u), other(0.0, u), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(one.diffusion(u), other.diffusion(u), rtol=1e-9, atol=1e-12)
    robust = regression(label_noise=0.5, loss=functional.huber_loss)
    assert robust.labels.labels.points == 9


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["classes, flips", "regression, noise"])
def test_copies_are_single_models(name):
    """A step of copies in one module is a step of each, by the problem's loss and torch.optim."""
    problem = PROBLEMS[name]()
    generator = torch.Generator().manual_seed(0)
    copies = problem.model(replicas=(2, 2), generator=generator, dtype=torch.float64)
    x, y = problem.sample(3, replicas=(2, 2), generator=generator, dtype=torch.float64)
    single = problem.model(dtype=torch.float64)
    single.load_state_dict({n: p[1, 0] for n, p in copies.named_parameters()})
    for model, data in ((copies, (x, y)), (single, (x[1, 0], y[1, 0]))):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        problem.loss(model(data[0]), data[1]).backward()
        optimizer.step()
    for name, parameter in single.named_parameters():
        torch.testing.assert_close(dict(copies.named_parameters())[name][1, 0], parameter)


def test_starts_follow_the_generator_and_keep_what_is_frozen():
    head = nn.Sequential(nn.Tanh(), nn.Linear(2, 2), nn.Linear(2, 1))
    head[2].weight.requires_grad_(False)
    problem = regression(head=head)
    one, same, other = (
        problem.model(generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.head[1].weight, other.head[1].weight)
    assert torch.equal(one.head[2].weight, head[2].weight)
    assert "head.2.weight[0,0]" not in problem.names
    assert "head.2.bias[0]" in problem.names
    state = torch.get_rng_state()
    problem.model(generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_problem_can_be_pickled():
    problem = classes(label_flips=0.1, ridge=0.1, weights=[0.5, 0.25, 0.25])
    again = pickle.loads(pickle.dumps(problem))
    u = points(problem, 1)
    assert again.describe() == problem.describe()
    first, second = (p.dynamics(step_size=1.0, nodes=64)(0.0, u) for p in (problem, again))
    assert torch.equal(first, second)


def rms(z):
    return float(z.square().mean().sqrt())


@pytest.mark.parametrize(
    ("name", "c"),
    [pytest.param("classes, flips", 4.0, marks=pytest.mark.slow), ("regression, noise", 2.0)],
)
def test_sgd_follows_the_prediction(name, c):
    problem = {"classes, flips": classes, "regression, noise": regression}[name](
        N=100, snr=1.0, ridge=0.05,
        **({"label_flips": 0.1} if "flips" in name else {"label_noise": 0.5}),
    )  # fmt: skip
    measured = tl.train(
        problem, step_size=c, time=3.0, runs=32, every=round(100 / c), progress=False,
        dtype=torch.float64,
    )  # fmt: skip
    dynamics = problem.dynamics(step_size=c, nodes=2**11)
    with_it, without = (dynamics.solve(measured, corrector=c) for c in (True, False))

    def z(predicted):
        difference = (measured.values - predicted.values)[:, 1:]
        return difference.mean(0) / (difference.std(0) / len(difference) ** 0.5)

    assert rms(z(with_it)) < 1.5
    squares = [measured.names.index(f"R[{i},{i}]") for i in range(problem.width)]
    assert rms(z(without)[:, squares]) > 4
