"""Teacher and student: closed forms against nodes, runs against the prediction, conventions."""

import json
import pickle
from functools import partial

import pytest
import torch
from torch import nn

import torchlimits as tl
from torchlimits.problems.network.closed_field import ClosedField
from torchlimits.problems.network.field import NetworkField
from torchlimits.problems.network.nodes import Rule

DOUBLE = {"dtype": torch.float64}
ACTIVATIONS = ["erf", "relu", "square", "linear"]


def problem_of(activation="erf", width=2, teacher_width=1, dim=100, **options):
    return tl.TeacherStudent(
        dim=dim, width=width, teacher_width=teacher_width, activation=activation, **options
    )


def by_nodes(problem, nodes):
    """The field of the same problem, all of whose averages are over nodes."""
    dims = problem.width + len(problem.setting.reads)
    rule = Rule(dims, nodes, 0, smooth=problem.kinks.smooth)
    return NetworkField(problem.setting, dim=problem.dim, rule=rule, kinks=problem.kinks)


def closed(problem):
    field = problem.dynamics(step_size=1.0).field
    assert isinstance(field, ClosedField)
    return field


def points(field, count=12):
    return field.geometry.random(count, torch.Generator().manual_seed(1))


def points_of_order_one(problem, count=12):
    """Student's rows of length about 1, as they are at a random start, with overlaps."""
    start = problem.starts(count, generator=torch.Generator().manual_seed(2))
    theta, b, m, R = problem.setting.layout.split(start)
    m = 0.5 * torch.randn(m.shape, generator=torch.Generator().manual_seed(3), **DOUBLE)
    return problem.setting.layout.join(theta.clamp(-1.5, 1.5), b, m, R)


def differences(one, other, u):
    """The largest of drift and corrector at each point."""
    pairs = zip(one.terms(u), other.terms(u), strict=True)
    return torch.stack([(a - b).abs().amax(-1) for a, b in pairs]).amax(0)


# --- closed forms against nodes


@pytest.mark.parametrize("train_second_layer", [True, False])
def test_gauss_hermite_agrees_with_the_closed_forms(train_second_layer):
    """erf, K = 2, M = 1: 20^3 nodes are within 1e-5."""
    problem = problem_of(noise=0.3, train_second_layer=train_second_layer)
    field, u = closed(problem), points_of_order_one(problem)
    assert float(differences(field, by_nodes(problem, 20**3), u).median()) < 1e-5
    coarse = differences(field, by_nodes(problem, 8**3), u)
    assert float(coarse.median()) > 1e-5


def test_many_sobol_nodes_agree_with_the_closed_forms_within_their_error():
    """erf, K = M = 4, which nodes are not good at."""
    problem = problem_of(width=4, teacher_width=4, noise=0.1)
    field, nodes = closed(problem), by_nodes(problem, 2**16)
    u = field.geometry.random(8, torch.Generator().manual_seed(0))  # those of the estimate
    found = float(differences(field, nodes, u).median())
    assert 1e-4 < found < 1.5 * nodes.error < 0.03


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nodes_agree_with_every_closed_form(activation):
    """With a teacher of dependent rows of unequal weights, and label noise."""
    T = torch.tensor([[1.0, 0.5, 1.5], [0.5, 1.0, 1.5], [1.5, 1.5, 3.0]])
    problem = problem_of(
        activation, width=2, teacher_width=3, overlaps=T, noise=0.4, ridge=0.1,
        teacher_second_layer=[0.5, -0.3, 0.2],
    )  # fmt: skip
    assert problem.setting.reads.shape == (2, 2)  # the rank of T
    field, nodes = closed(problem), by_nodes(problem, 2**15)
    u = field.geometry.random(8, torch.Generator().manual_seed(0))  # those of the estimate
    assert float(differences(field, nodes, u).median()) < 2 * nodes.error
    assert torch.allclose(field.risk(u), nodes.risk(u), rtol=2e-2, atol=2e-2)
    wrong = closed(problem_of(activation, width=2, teacher_width=3, overlaps=T, noise=0.4))
    assert float(differences(wrong, nodes, u).median()) > 3 * nodes.error
    assert field.rtol < nodes.rtol


@pytest.mark.parametrize("activation", ["erf", "relu"])
def test_jacobians_are_differences(activation):
    field = closed(problem_of(activation, width=2, teacher_width=2, noise=0.2))
    u, step = points(field, 2), 1e-5

    def velocity(u):
        return sum(field.terms(u))

    eye = step * torch.eye(u.shape[-1], **DOUBLE)
    moved = (velocity(u[:, None] + eye) - velocity(u[:, None] - eye)) / (2 * step)
    assert torch.allclose(field.jacobian(velocity, u), moved.mT, rtol=1e-4, atol=1e-4)


def test_other_activations_take_nodes():
    """A function that is erf gives what the name gives, to the nodes' error; tanh does not."""
    options = {"width": 1, "teacher_width": 1, "noise": 0.2}
    named = problem_of(**options)
    same = problem_of(lambda x: torch.erf(x / 2**0.5), **options)
    field = same.dynamics(step_size=1.0).field
    assert not isinstance(field, ClosedField)
    u = points_of_order_one(named, 4)
    assert float(differences(closed(named), field, u).max()) < 1e-3
    error = named.generalization_error(u)
    assert torch.allclose(same.generalization_error(u), error, atol=1e-4)
    tanh = problem_of(nn.Tanh(), **options)
    assert not torch.allclose(tanh.generalization_error(u), error, atol=1e-2)


def test_the_generalization_error_has_no_noise_and_the_risk_has():
    problem = problem_of(width=2, teacher_width=2, noise=0.3, train_second_layer=False)
    eye = torch.eye(2, **DOUBLE)
    u = problem.from_order_parameters(eye, eye)
    assert float(problem.generalization_error(u)) == pytest.approx(0, abs=1e-15)
    dynamics = problem.dynamics(step_size=1.0)
    assert float(dynamics.risk(u)) == pytest.approx(0.045)
    assert problem.generalization_error(u.float()).dtype == torch.float32
    with pytest.raises(ValueError, match="labels that are classes"):
        dynamics.accuracy(u)


# --- order parameters


def test_order_parameters_there_and_back():
    T = torch.tensor([[2.0, 0.5], [0.5, 1.0]], **DOUBLE)
    for convention in ("torch", "sqrt"):
        problem = problem_of(width=3, teacher_width=2, overlaps=T, convention=convention)
        J = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), **DOUBLE)
        B = torch.cat([torch.linalg.cholesky(T), torch.zeros(2, 3, **DOUBLE)], dim=1)
        u = problem.from_order_parameters(J @ J.mT, J @ B.mT, [1.0, 2.0, 3.0])
        for found, expected in zip(
            problem.order_parameters(u), (J @ J.mT, J @ B.mT, T), strict=True
        ):
            assert torch.allclose(found, expected, atol=1e-12)
        assert u[:3].tolist() == [1.0, 2.0, 3.0]


def test_order_parameters_are_those_of_the_weights():
    problem = problem_of(width=2, teacher_width=2, dim=50, convention="sqrt")
    model = problem.model(generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    J = model.first.weight.detach() / 50**0.5
    Q, C, _ = problem.order_parameters(problem.statistics(dict(model.named_parameters())).detach())
    assert torch.allclose(Q, J @ J.mT, atol=1e-12)
    assert torch.allclose(C, J @ problem.directions.mT, atol=1e-12)
    assert 0.5 < float(Q[0, 0]) < 2


# --- the numbers of the literature, by the package's own solver


def test_fixed_points_have_the_noise_of_the_literature():
    """K = M = 2, eta = 0.1, s^2 = 0.01: 1.045 times eta s^2 / (sqrt(3) pi)."""
    problem = problem_of(width=2, teacher_width=2, noise=0.1, train_second_layer=False)
    eye = torch.eye(2, **DOUBLE)
    near = problem.from_order_parameters(1.01 * eye, eye)
    (point,) = problem.dynamics(step_size=0.1).fixed_points(near[None])
    assert point.stable
    law = 0.1 * 0.01 / (3**0.5 * torch.pi)
    assert float(problem.generalization_error(point.u)) / law == pytest.approx(1.045, abs=6e-4)


# --- runs


def deviations(measured, predicted):
    """Means of runs minus the prediction in standard errors, after the start."""
    count = len(measured.values)
    error = measured.values.double().std(0) / count**0.5
    z = (measured.values.double().mean(0) - predicted.values) / error
    return z[1:]


def rms(z):
    return float(z.square().mean().sqrt())


@pytest.mark.parametrize(
    ("activation", "train_second_layer", "convention"),
    [("erf", True, "torch"), ("relu", False, "sqrt")],
)
def test_runs_follow_the_prediction(activation, train_second_layer, convention):
    """N = 400, 32 runs from one start; without the corrector they do not."""
    N, c, time = 400, 1.5, 1.2
    problem = problem_of(
        activation, width=2, teacher_width=2, dim=N, noise=0.2, convention=convention,
        train_second_layer=train_second_layer, overlaps=[[1.0, 0.3], [0.3, 1.0]],
    )  # fmt: skip
    clock = 1 if convention == "torch" else N
    start = problem.model(generator=torch.Generator().manual_seed(3))
    measured = tl.train(
        problem, step_size=clock * c, time=clock * time, runs=32, seed=1, every=160, start=start,
        progress=False,
    )  # fmt: skip
    dynamics, u0 = problem.dynamics(step_size=clock * c), measured.initial[0].double()
    path = dynamics.solve(u0, measured.times, band=True, rtol=1e-5)
    z = deviations(measured, path)
    assert rms(z) < 1.5
    without = dynamics.solve(u0, measured.times, corrector=False, rtol=1e-5)
    assert rms(deviations(measured, without)) > 4 * rms(z)
    ratio = measured.values[:, -1].double().std(0) / path.std[-1]
    assert 0.85 < float(ratio.square().mean().sqrt()) < 1.15


# --- conventions


def trained_by(problem, first, second):
    """An SGD with a learning rate for each layer; None: there is one group without the second."""
    model = problem.model()
    groups = [{"params": model.first.parameters(), "lr": first}]
    if second is not None:
        groups.append({"params": model.head.parameters(), "lr": second})
    return torch.optim.SGD(groups)


@pytest.mark.parametrize("eta_v", [None, 0.3])
def test_both_conventions_have_the_same_limit(eta_v):
    """sqrt: the learning rate is eta, not eta/N; the clock adds up eta, N times as much."""
    N, eta = 400, 0.7
    rates, noises, u = [], [], None
    for convention, clock in (("torch", 1), ("sqrt", N)):
        problem = problem_of(
            width=2, teacher_width=2, dim=N, noise=0.2, convention=convention,
            train_second_layer=eta_v is not None,
        )  # fmt: skip
        if u is None:
            u = problem.starts(1, generator=torch.Generator().manual_seed(0))[0]
        second = None if eta_v is None else eta_v / N
        dynamics = problem.dynamics(trained_by(problem, clock * eta / N, second))
        rates.append(clock * dynamics.forward(0.0, u))
        noises.append(clock * dynamics.diffusion(u))
    assert torch.allclose(rates[0], rates[1], rtol=1e-10, atol=1e-12)
    assert torch.allclose(noises[0], noises[1], rtol=1e-10, atol=1e-12)


def test_the_exact_chain_follows_a_learning_rate_for_each_layer():
    """With inputs over sqrt(N), eta and eta_v/N."""
    N, eta, eta_v, time = 300, 0.7, 0.3, 0.7
    problem = problem_of(width=2, teacher_width=2, dim=N, noise=0.2, convention="sqrt")
    u = problem.starts(1, generator=torch.Generator().manual_seed(0))[0]
    optimizer, steps = trained_by(problem, eta, eta_v / N), round(time * N / eta)
    path = problem.dynamics(optimizer).solve(u, [0.0, N * time], rtol=1e-6)
    chain = problem.reduced_chain(optimizer).run(
        u, steps=steps, runs=200, every=steps, generator=torch.Generator().manual_seed(1)
    )
    assert rms(deviations(chain, path)) < 1.6
    wrong = problem.dynamics(trained_by(problem, eta, 2 * eta_v / N))
    other = wrong.solve(u, [0.0, N * time], rtol=1e-4)
    assert rms(deviations(chain, other)) > 3


@pytest.mark.parametrize("convention", ["torch", "sqrt"])
def test_terms_are_those_of_one_step(convention):
    """Drift and corrector against naive averages over data in the full space."""
    problem = problem_of(width=2, teacher_width=2, dim=100, noise=0.3, convention=convention)
    model = problem.model(generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    u = problem.statistics(dict(model.named_parameters())).detach()
    estimate = tl.estimate(
        model, problem.loss, partial(problem.sample, dtype=torch.float64), problem.statistics,
        step_size=1 / 100, samples=8_000, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    drift, corrector = closed(problem_of(width=2, teacher_width=2, dim=100, noise=0.3)).terms(u)
    slow = torch.tensor([1.0 if name == "head.weight" else 100.0 for name in closed_names(problem)])
    factor = slow if convention == "sqrt" else torch.ones_like(slow)
    # R has N - d directions, not N: the corrector is that much smaller
    expected = (drift / factor, corrector / factor**2 * 0.98)
    for found, value in zip((estimate.drift, estimate.corrector), expected, strict=True):
        z = (found.value - value).abs() / found.standard_error.clamp_min(1e-12)
        assert float(z[value != 0].max()) < 4.5


def closed_names(problem):
    return problem.setting.layout.parameter_names


def test_one_learning_rate_with_the_sqrt_convention_is_refused():
    problem = problem_of(convention="sqrt", dim=400)
    model = problem.model()
    for given in (
        {"optimizer": torch.optim.SGD(model.parameters(), lr=0.1)},
        {"step_size": 0.5},
    ):
        with pytest.raises(ValueError, match=r"a second layer whose learning rate is 1 times .*"
                           r"'lr': eta_v / dim"):  # fmt: skip
            problem.dynamics(**given)
    slow = trained_by(problem, 0.0, 0.1 / 400)  # the first layer stays where it is
    assert problem.dynamics(slow).names == problem.names
    frozen = problem_of(convention="sqrt", dim=400, train_second_layer=False)
    assert frozen.dynamics(step_size=0.5).names == frozen.names
    with pytest.raises(ValueError, match=r"expected dim=400, the problem's own, with convention"):
        frozen.dynamics(step_size=0.5, dim=1000)


# --- what users meet


def test_frozen_second_layers_are_no_statistics_and_do_not_move():
    problem = problem_of(train_second_layer=False, second_layer=[0.5, -2.0])
    assert not any(name.startswith("head") for name in problem.names)
    model = problem.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = problem.sample(4)
    problem.loss(model(x), y).backward()
    optimizer.step()
    assert model.head.weight.tolist() == [0.5, -2.0]
    trained = problem_of(second_layer=[0.5, -2.0])
    assert trained.names[:2] == ["head.weight[0]", "head.weight[1]"]
    assert trained.model().head.weight.tolist() == [0.5, -2.0]
    one, two = problem_of().starts(2)
    assert not torch.equal(one[:2], two[:2])


def test_the_loss_is_half_the_mean_square_and_inputs_have_their_scale():
    for convention, scale in (("torch", 1.0), ("sqrt", 0.1)):
        problem = problem_of(convention=convention, dim=100)
        x, y = problem.sample(500, generator=torch.Generator().manual_seed(0))
        assert float(x.std()) == pytest.approx(scale, rel=0.02)
        assert y.shape == (500,)
        assert float(y.var()) == pytest.approx(1 / 3, rel=0.2)  # of erf(t / sqrt 2)
        assert problem.loss(torch.tensor([3.0]), torch.tensor([1.0])) == 2


@pytest.mark.parametrize("convention", ["torch", "sqrt"])
def test_problems_are_pickled_and_described(convention):
    problem = problem_of(
        "relu", teacher_width=2, overlaps=torch.eye(2) * 2, noise=0.1, convention=convention
    )
    again = pickle.loads(pickle.dumps(problem))
    u = problem.starts(3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.generalization_error(u), problem.generalization_error(u))
    assert json.loads(json.dumps(problem.describe()))["activation"] == "relu"
    assert repr(again) == repr(problem)
    assert f"convention={convention!r}" in repr(problem)
    facts = problem.dynamics(step_size=0.5) if convention == "torch" else None
    if facts is not None:
        assert facts.field.describe()["averages"] == "closed form, ReLU"


def test_no_tensor_is_made_on_the_default_device():
    with torch.device("meta"):
        problem = problem_of(teacher_width=2, noise=0.1, overlaps=[[1.0, 0.2], [0.2, 1.0]])
        u = problem.starts(1, generator=torch.Generator().manual_seed(0))[0]
        u = problem.from_order_parameters(*problem.order_parameters(u)[:2], u[:2])
        error = problem.generalization_error(u)
        drift = problem.dynamics(step_size=0.5).drift(u)
    assert error.device.type == drift.device.type == "cpu"


REFUSED = [
    ({"activation": "tanh"}, ValueError, "expected activation 'erf', 'relu'.*torch.tanh"),
    ({"activation": 3}, TypeError, "expected activation as a name, a function"),
    ({"activation": lambda x: x.sum(-1)}, ValueError, "acts entry by entry"),
    ({"activation": lambda x: x @ x}, ValueError, "acts on every entry.*RuntimeError"),
    ({"activation": torch.log}, ValueError, "finite outputs"),
    ({"convention": "ntk"}, ValueError, "expected convention 'torch'.*'sqrt'.*'ntk'"),
    ({"noise": -1.0}, ValueError, "noise"),
    ({"width": 0}, ValueError, "width"),
    ({"teacher_width": 1.5}, ValueError, "teacher_width"),
    ({"overlaps": [[1.0]]}, ValueError, r"symmetric, of shape \(2, 2\), got shape \(1, 1\)"),
    ({"overlaps": [[1.0, 0.5], [0.0, 1.0]]}, ValueError, "mirror images"),
    ({"overlaps": [[1.0, 2.0], [2.0, 1.0]]}, ValueError, "smallest eigenvalue -1"),
    ({"overlaps": [[0.0, 0.0], [0.0, 0.0]]}, ValueError, "not 0"),
    ({"teacher_second_layer": [1.0]}, ValueError, "expected teacher_second_layer as 2 finite"),
    ({"second_layer": [1.0, float("nan")]}, ValueError, "expected second_layer as 2 finite"),
    ({"dim": 3}, ValueError, "expected dim >= rank of the teacher"),
]


@pytest.mark.parametrize(("change", "error", "message"), REFUSED)
def test_bad_input_is_refused_with_a_sentence(change, error, message):
    with pytest.raises(error, match=message):
        tl.TeacherStudent(**{"dim": 50, "width": 2, "teacher_width": 2, **change})


def test_overlaps_that_no_student_has_are_refused():
    problem = problem_of(width=2, teacher_width=2)
    eye = torch.eye(2)
    with pytest.raises(ValueError, match=r"expected Q of shape \(2, 2\) and C of shape \(2, 2\)"):
        problem.from_order_parameters(eye, torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"Q - C T.*smallest eigenvalue of -3"):
        problem.from_order_parameters(eye, 2 * eye)
    flat = problem_of(width=2, teacher_width=2, overlaps=torch.ones(2, 2))
    with pytest.raises(ValueError, match="linear dependences"):
        flat.from_order_parameters(eye, eye)
    with pytest.raises(ValueError, match=r"expected a tensor of statistics of shape \(..., 9\)"):
        problem.generalization_error(torch.zeros(2))
