"""Optimizers with second moments: what is read from them, what is refused, and one real step."""

import re
import warnings

import pytest
import torch
from adaptive_runs import binary, copies, spread, three_classes
from torch import nn

import torchlimits as tl
from torchlimits.optim.leverage import axes_in

N = 256
LR = 1 / N
Adam, AdamW = torch.optim.Adam, torch.optim.AdamW
RMSprop, Adagrad = torch.optim.RMSprop, torch.optim.Adagrad


@pytest.fixture(scope="module")
def problem():
    return binary()


@pytest.fixture
def model(problem):
    return problem.model(generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def start(problem):
    return problem.starts(1, generator=torch.Generator().manual_seed(0))[0]


# --- what is read from the optimizer --------------------------------------------------------------

OPTIONS = [
    (Adam, {}, {"kind": "Adam", "memory": 0.999, "eps": 1e-8, "decay": 0.0}),
    (Adam, {"betas": (0.0, 0.99), "eps": 0.1}, {"memory": 0.99, "eps": 0.1}),
    (Adam, {"weight_decay": 0.3}, {"weight_decay": 0.3, "decay": 0.0}),
    (AdamW, {"weight_decay": 0.3}, {"kind": "Adam", "weight_decay": 0.0, "decay": 0.3}),
    (AdamW, {}, {"decay": 0.01}),
    (Adam, {"maximize": True}, {"maximize": True}),
    (Adam, {"foreach": True}, {}),
    (Adam, {"fused": True}, {}),
    (Adam, {"capturable": True, "foreach": False}, {}),
    (Adam, {"lr": torch.tensor(LR), "foreach": False}, {}),
    (RMSprop, {}, {"kind": "RMSprop", "memory": 0.99}),
    (RMSprop, {"alpha": 0.98, "momentum": 0.5}, {"memory": 0.98, "momentum": 0.5}),
    (RMSprop, {"weight_decay": 0.2}, {"weight_decay": 0.2, "decay": 0.0}),
    (Adagrad, {"initial_accumulator_value": 100.0}, {"kind": "Adagrad", "initial": 100.0}),
]


@pytest.mark.filterwarnings("ignore:the optimizer's weight_decay")
@pytest.mark.parametrize(("kind", "options", "expected"), OPTIONS)
def test_options_are_those_of_the_optimizer(problem, model, kind, options, expected):
    optimizer = kind(model.parameters(), **{"lr": LR, **options})
    settings = problem.dynamics(optimizer, batch_size=2).limit.reference.describe()
    assert {name: settings[name] for name in expected} == expected
    assert settings["step_size"] == pytest.approx(1.0)
    assert settings["batch_size"] == 2


def test_each_group_has_options_of_its_own(problem, model):
    groups = [
        {"params": model.head.parameters()},
        {"params": model.first.parameters(), "lr": 3 * LR, "betas": (0.9, 0.99)},
    ]
    limit = problem.dynamics(Adam(groups, lr=LR), model=model).limit
    assert limit.step_size == pytest.approx(1.0)
    first, head = limit.settings["first.weight"], limit.settings["head.1.bias"]
    assert (first.step_size, first.memory) == (pytest.approx(3.0), 0.99)
    assert (head.step_size, head.memory) == (pytest.approx(1.0), 0.999)
    assert limit.describe()["first.weight.memory"] == 0.99


def test_what_is_frozen_has_no_second_moment_and_stays(problem, model, start):
    model.first.bias.requires_grad_(False)
    dynamics = problem.dynamics(Adam(model.parameters(), lr=LR), model=model)
    assert not any(name.startswith("first.bias.") for name in dynamics.names)
    biases = [i for i, name in enumerate(dynamics.names) if name.startswith("b[")]
    path = dynamics.solve(start, [0.0, 0.3])
    assert torch.equal(path.values[0, biases], path.values[1, biases])
    assert float((path.values[1] - path.values[0]).abs().max()) > 0.1


def test_the_clock_is_a_group_that_moves(problem, model):
    model.head.requires_grad_(False)
    groups = [
        {"params": model.head.parameters(), "lr": 5 * LR},
        {"params": [*model.first.parameters()]},
    ]
    dynamics = problem.dynamics(Adam(groups, lr=LR), model=model)
    assert dynamics.limit.step_size == pytest.approx(1.0)
    assert "bias_correction2" in dynamics.names


def test_schedules_are_followed(problem, model, start):
    optimizer = Adam(model.parameters(), lr=LR)
    rule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 0.5 if s < 128 else 1.0)
    measured = problem.dynamics(optimizer, schedule=rule, model=model)
    # 128 steps of half the size take a time of 1/4
    assert measured.steps(torch.tensor([0.25, 0.75])).tolist() == [128, 256]
    path = measured.solve(start, [0.0, 0.25, 0.75])
    expected = 1 - 0.999 ** torch.tensor([0.0, 128, 256], dtype=torch.float64)
    assert path["bias_correction2"].allclose(expected, atol=2e-4)  # half a step


# --- what is refused ------------------------------------------------------------------------------


class Derived(Adam):
    """Something else, for all that is known."""


REFUSED = [
    (Adam, {"amsgrad": True}, ValueError, "expected amsgrad=False .* the largest second moment"),
    (RMSprop, {"centered": True}, ValueError, "expected centered=False .* the variance of grad"),
    (Adam, {"betas": (0.9, 0.9)}, ValueError, r"at least 50 steps, 1/\(1 - 0.9\) is 10"),
    (RMSprop, {"alpha": 0.9}, ValueError, r"at least 50 steps, 1/\(1 - 0.9\) is 10"),
    (RMSprop, {"momentum": 1.0}, ValueError, "expected momentum < 1 in RMSprop, got 1"),
    (Adam, {"lr": 0.0}, ValueError, "expected a learning rate > 0 in Adam, got 0"),
    (Adagrad, {}, ValueError, "initial_accumulator_value > 0 in Adagrad, of the order of N, got 0"),
    (
        Adagrad, {"lr_decay": 0.1, "initial_accumulator_value": N}, ValueError,
        r"expected lr_decay=0.0 .* got 0.1: give the decay as a schedule \(recording",
    ),
    (torch.optim.NAdam, {}, TypeError, "got NAdam: .*Adam, AdamW, RMSprop, Adagrad"),
    (torch.optim.Adamax, {}, TypeError, "got Adamax: .*recording works with any optimizer"),
    (torch.optim.Adafactor, {}, TypeError, "got Adafactor: .*recording works with any optimizer"),
    (Derived, {}, TypeError, "got Derived: .*recording works with any optimizer"),
    (
        Adam, {"lr": torch.tensor(LR, requires_grad=True), "foreach": False},
        NotImplementedError, "tensor that requires a gradient: .* give float",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "options", "error", "words"), REFUSED)
def test_what_has_no_limit_is_refused(problem, model, kind, options, error, words):
    optimizer = kind(model.parameters(), **{"lr": LR, **options})
    with pytest.raises(error, match=words):
        problem.dynamics(optimizer)


def test_other_problems_refuse_second_moments():
    problem = tl.SpikedTensor(dim=N, order=2, snr=2.0)
    with pytest.raises(TypeError, match=r"got Adam: .* known for NetworkProblem"):
        problem.dynamics(Adam(problem.model().parameters(), lr=LR))


def test_scaled_inputs_are_refused():
    problem = tl.TeacherStudent(dim=N, width=2, teacher_width=2, convention="sqrt")
    model = problem.model()
    with pytest.raises(ValueError, match="expected convention='torch' with Adam"):
        problem.dynamics(Adam(model.parameters(), lr=LR), model=model)


@pytest.mark.parametrize("count", [10, 40])
def test_coordinates_between_axes_and_spread_ones_are_refused(count):
    direction = torch.zeros(1, N, dtype=torch.float64)
    direction[0, 7 : 7 + count] = count**-0.5
    problem = binary(means=direction, labels=torch.tensor([1.0], dtype=torch.float64))
    model = problem.model()
    words = f"got coordinate 7 with leverage {1 / count:.3g} "
    with pytest.raises(ValueError, match=re.escape(words)):
        problem.dynamics(Adam(model.parameters(), lr=LR))
    problem.dynamics(torch.optim.SGD(model.parameters(), lr=LR))  # does not see axes


def test_leverage_is_that_of_the_span():
    turn = torch.linalg.qr(torch.randn(2, 2, dtype=torch.float64))[0]
    places, axes = axes_in(turn @ torch.eye(N, dtype=torch.float64)[[3, 9]])
    assert places.tolist() == [3, 9]
    assert (turn.mT @ axes).allclose(torch.eye(2, dtype=torch.float64))
    places, axes = axes_in(spread([1, 2, 3], N))
    assert places.tolist() == []
    assert axes.shape == (3, 0)


def test_there_is_no_chain_no_law_and_no_gradient(problem, model, start):
    optimizer = Adam(model.parameters(), lr=LR)
    dynamics = problem.dynamics(optimizer)
    with pytest.raises(NotImplementedError, match="no exact chain is known for Adam"):
        problem.reduced_chain(optimizer)
    with pytest.raises(NotImplementedError, match="no exact chain is known"):
        dynamics.reduced_chain()
    with pytest.raises(NotImplementedError, match=r"expected band=True .* got 'law'"):
        dynamics.solve(start, [0.0, 0.1], band="law")
    leaf = start.clone().requires_grad_()
    with pytest.raises(NotImplementedError, match="no derivatives of the dynamics of Adam"):
        dynamics.solve(leaf, [0.0, 0.1]).values.sum().backward()


def test_impossible_second_moments_are_refused(problem, model, start):
    dynamics = problem.dynamics(Adam(model.parameters(), lr=LR))
    whole = dynamics.field.completed(start)
    dynamics.solve(whole, [0.0, 0.01])
    for entry, value in ((len(start), -0.1), (-1, 1.5), (-1, -0.1)):
        bad = whole.clone()
        bad[entry] = value
        with pytest.raises(ValueError, match="expected second moments >= 0 and bias_correction2"):
            dynamics.solve(bad, [0.0, 0.01])
    with pytest.raises(ValueError, match=r"expected u of shape \(..., 20\)"):
        dynamics.solve(whole[:15], [0.0, 0.01])


def test_a_learning_rate_of_0_on_the_way_is_refused(problem, model, start):
    optimizer = Adam(model.parameters(), lr=LR)
    dynamics = problem.dynamics(optimizer, schedule=lambda t: max(0.0, 0.1 - t))
    with pytest.raises(ValueError, match=r"expected schedule\(t\) > 0"):
        dynamics.solve(start, [0.0, 0.2])


# --- warnings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "batch", "words"),
    [
        (Adam, {}, 16, f"batches of 16 at dim={N}: predictions for Adam neglect B/N, 0.062"),
        (Adagrad, {"initial_accumulator_value": 1.0}, 1, "initial_accumulator_value=1 at dim=256"),
        (Adam, {"weight_decay": 0.1}, 1, "weight_decay=0.1 of .* is not the problem's ridge=0"),
        (AdamW, {"weight_decay": 0.1}, 1, "weight_decay=0.1 of .* is not the problem's ridge=0"),
    ],
)
def test_what_is_far_from_the_limit_draws_a_warning(problem, model, kind, options, batch, words):
    optimizer = kind(model.parameters(), lr=LR, **options)
    with pytest.warns(UserWarning, match=words):
        problem.dynamics(optimizer, batch_size=batch)


def test_what_is_as_it_should_be_draws_none(model):
    problem = binary(ridge=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        problem.dynamics(Adam(model.parameters(), lr=LR, weight_decay=0.1), batch_size=4)
        problem.dynamics(AdamW(model.parameters(), lr=LR, weight_decay=0.1))
    problem = binary()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        problem.dynamics(Adagrad(model.parameters(), lr=LR, initial_accumulator_value=N / 2))


# --- the formulas, against one step of the real optimizer -----------------------------------------


def placed(problem, optimizer, model, seed=0, steps=300):
    """Put the replicas in the middle of a run: parameters of order 1, second moments of their own.

    Rows of W lie in the span of spread vectors, as those of real runs do.
    """
    generator = torch.Generator().manual_seed(seed)
    d, K, dim = len(problem.directions), problem.width, problem.dim

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    around = spread(range(100, 100 + K), dim)
    around = torch.linalg.qr(torch.cat([problem.directions, around]).mT)[0].mT[d:]
    m, root = normal(K, d), torch.eye(K) + 0.3 * normal(K, K)
    with torch.no_grad():
        model.first.weight.copy_(m @ problem.directions + root @ around)
        model.first.bias.copy_(0.3 * normal(K))
        for p in model.head.parameters():
            p.copy_((0.6 * normal(*p.shape[1:])).expand_as(p))
    key = {Adam: "exp_avg_sq", AdamW: "exp_avg_sq", RMSprop: "square_avg", Adagrad: "sum"}
    scale = 20 * dim if isinstance(optimizer, Adagrad) else 0.5
    for name, p in model.named_parameters():
        entries = p.shape[1:] if name != "first.weight" else (K, 1)
        v = scale * (0.2 + torch.rand(*entries, generator=generator, dtype=torch.float64))
        v = v.expand(p.shape[1:]).clone()
        if name == "first.weight":  # coordinates that are axes have their own
            places = axes_in(problem.directions)[0]
            v[:, places] = 0.1 + torch.rand(K, len(places), generator=generator).double()
        optimizer.state[p].update(
            {"step": torch.tensor(float(steps)), key[type(optimizer)]: v.expand_as(p).clone()}
        )
        if isinstance(optimizer, Adam):
            optimizer.state[p]["exp_avg"] = torch.zeros_like(p)


def state_of(optimizer, model):
    """What statistics read."""
    named = dict(model.named_parameters())
    runs = len(model.first.weight)
    state = {
        f"{name}.{key}": value.expand(runs) if value.ndim == 0 else value
        for name, p in named.items() for key, value in optimizer.state[p].items()
        if isinstance(value, torch.Tensor)
    }  # fmt: skip
    return {**named, **state}


def one_step(problem, make, batch=1, samples=2000, rounds=2):
    """u before, dynamics and the change of u in one step, for many batches ``(samples, k)``."""
    model = copies(problem, samples)
    changes, generator = [], torch.Generator().manual_seed(5)
    for _ in range(rounds):
        optimizer = make(model)
        dynamics = problem.dynamics(optimizer, batch_size=batch, model=model)
        placed(problem, optimizer, model)
        with torch.no_grad():
            before = dynamics.statistics(state_of(optimizer, model))
        x, y = problem.sample(batch, replicas=(samples,), generator=generator)
        optimizer.zero_grad()
        problem.loss(model(x), y).backward()
        optimizer.step()
        with torch.no_grad():
            changes.append(dynamics.statistics(state_of(optimizer, model)) - before)
    assert before.std(0).max() < 1e-12
    return before[0].double(), dynamics, torch.cat(changes).double()


def on_axes(**changes):
    return binary(means=torch.eye(2, N).double(), **changes)


#: steps large enough for the corrector to stand out, a memory that one step does not change
STEPS = [
    pytest.param(
        binary, lambda m: Adam(m.parameters(), lr=10 * LR, betas=(0.0, 0.9999)), 1, id="adam"
    ),
    pytest.param(
        lambda: three_classes(ridge=0.1),
        lambda m: AdamW(m.parameters(), lr=25 * LR, betas=(0.0, 0.9999), weight_decay=0.1), 4,
        id="adamw",
    ),
    pytest.param(
        lambda: on_axes(ridge=0.3),
        lambda m: Adam(m.parameters(), lr=10 * LR, betas=(0.0, 0.9999), weight_decay=0.3, eps=0.1),
        4,
        id="axes",
    ),
    pytest.param(
        binary,
        lambda m: RMSprop(m.parameters(), lr=10 * LR, alpha=0.9999, maximize=True), 1,
        id="rmsprop", marks=pytest.mark.slow,
    ),
    pytest.param(
        binary,
        lambda m: Adagrad(m.parameters(), lr=10 * N**-0.5, initial_accumulator_value=N), 1,
        id="adagrad", marks=pytest.mark.slow,
    ),
    pytest.param(
        lambda: binary(head=nn.Sequential(nn.ReLU(), nn.Linear(2, 1))),
        lambda m: Adam(
            [{"params": m.head.parameters()}, {"params": m.first.parameters(), "lr": 20 * LR}],
            lr=10 * LR, betas=(0.0, 0.9999),
        ),
        1, id="relu", marks=pytest.mark.slow,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("make_problem", "make", "batch"), STEPS)
def test_one_step_of_the_optimizer(make_problem, make, batch):
    """The mean of a step is drift and corrector, which without the corrector it is not."""
    problem = make_problem()
    u, dynamics, changes = one_step(problem, make, batch)
    lr, count = dynamics.limit.step_size / N, len(dynamics.network.names)
    drift, corrector = dynamics.field.rates(u, dynamics.limit.step_size)
    mean, error = changes.mean(0), changes.std(0) / len(changes) ** 0.5
    # N is finite, and the memory too
    error = (error.square() + (5e-3 * lr * (drift + corrector)).square()).sqrt()
    moving = error > 1e-12
    z = ((mean - lr * (drift + corrector)) / error)[moving]
    assert float(z.abs().max()) < 4.5
    assert float(z.square().mean()) < 3
    without = ((mean - lr * drift) / error)[:count]
    assert float(without.abs().max()) > 10


@pytest.mark.slow
@pytest.mark.parametrize(("make_problem", "make", "batch"), [STEPS[0], STEPS[2]])
def test_the_noise_of_one_step(make_problem, make, batch):
    """The covariance of a step, second moments among it, is that of the increments."""
    problem = make_problem()
    u, dynamics, changes = one_step(problem, make, batch, rounds=4)
    c = dynamics.limit.step_size
    centred = (changes - changes.mean(0))[:, :-1]  # the number of steps is not random
    products = centred[:, :, None] * centred[:, None, :]
    error = products.std(0) / len(products) ** 0.5

    def z(step_size):
        expected = (c / N) ** 2 * dynamics.field.increment_covariance(u, step_size)[:-1, :-1]
        tolerance = (error.square() + (0.02 * expected).square()).sqrt()
        found = (products.mean(0) - expected) / tolerance
        return found[tolerance > 1e-9 * tolerance.max()]

    assert float(z(c).square().mean()) < 2.5
    assert float(z(c).abs().max()) < 6
    # the part of the squared gradient, and how fast second moments take it up, count
    assert float(z(2 * c).square().mean()) > 10
