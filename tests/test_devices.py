"""Devices, dtypes and generators, as far as a CPU can show that none is forgotten.

Under ``torch.device("meta")`` a tensor made without a device has no values: whatever needs them
raises. That stands for ``torch.set_default_device("cuda")`` with parameters on the CPU, and for a
tensor that is left on the CPU where the others are on CUDA.
"""

from contextlib import contextmanager

import pytest
import torch

import torchlimits as tl

XOR = tl.GaussianMixture.xor(dim=40, width=4, snr=4.0, ridge=0.1)
BINARY = tl.GaussianMixture.binary(dim=100, snr=100.0, ridge=0.1)
SPIKED = tl.SpikedTensor(dim=40, order=2, snr=2.0)
DENSE = tl.SpikedTensor(dim=8, order=3, snr=2.0, sampler="dense", direction="random")
PROBLEMS = {"xor": XOR, "binary": BINARY, "spiked": SPIKED, "dense": DENSE}
POINT = torch.tensor([[0.5, 1.0], [0.2, 1.0]], dtype=torch.float64)


def generator():
    return torch.Generator().manual_seed(0)


STARTS = BINARY.starts(2, generator=generator())
XOR_STARTS = XOR.starts(2, generator=generator())
#: dynamics and points of them
DYNAMICS = {
    "spiked": (SPIKED.dynamics(step_size=1.0), POINT),
    "scheduled": (SPIKED.dynamics(step_size=1.0, schedule=lambda t: 1 / (1 + t)), POINT),
    "binary": (BINARY.dynamics(step_size=1.0, level=-3), STARTS),
    "xor": (XOR.dynamics(step_size=1.0, level=-3), XOR_STARTS),
    "small noise": (BINARY.small_noise().dynamics(step_size=1.0), STARTS),
}


def tracked(problem=XOR, *, dtype=None, **options):
    """Five steps of SGD on the CPU."""
    model = problem.model(generator=generator(), device="cpu", dtype=dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    source = generator()
    with tl.track(model, optimizer, problem.statistics, **options) as tracker:
        for _ in range(5):
            x, y = problem.sample(1, generator=source, dtype=dtype)
            optimizer.zero_grad()
            problem.loss(model(x), y).backward()
            optimizer.step()
            tracker.flush()
        tracker.load_state_dict(tracker.state_dict())
        if "probe" in options:
            str(tracker.explanation())
    return tracker.trajectory().values


def probed():
    return tracked(probe=tl.Probe(XOR.loss, XOR.sample, every=2, samples=20))


def trained(problem=XOR, **options):
    path = tl.train(problem, step_size=0.5, time=0.2, runs=3, progress=False, **options)
    return path.values


def estimated(statistics=XOR.statistics):
    model = XOR.model(generator=generator(), device="cpu")
    found = tl.estimate(
        model, XOR.loss, XOR.sample, statistics, step_size=0.02, samples=50, generator=generator()
    )
    return found.drift.value


def empirical():
    dynamics = tl.EmpiricalDynamics(
        BINARY.model(generator=generator(), device="cpu"), BINARY.loss, BINARY.sample,
        BINARY.statistics, step_size=1.0, dim=100, samples=100,
    )  # fmt: skip
    dynamics.jacobian(STARTS[:1])
    return dynamics.solve(STARTS[0], [0.0, 0.05]).values


def chained(problem, u0, **options):
    chain = problem.reduced_chain(step_size=0.5, **options)
    return chain.run(u0, 5, runs=4, generator=generator()).values


def cube(p):
    return (p["first.weight"] ** 3).sum()


#: what takes a generator or a seed and returns values
DRAWS = {
    "tracked": tracked,
    "in the hook": lambda: tracked(max_bytes=1),
    "probed": probed,
    "trained": trained,
    "trained, spiked": lambda: trained(SPIKED),
    "trained, dense": lambda: trained(DENSE),
    "estimated": estimated,
    "estimated, own": lambda: estimated({"cube": cube}),
    "empirical": empirical,
    "chain, spiked": lambda: chained(SPIKED, POINT[0]),
    "chain, xor": lambda: chained(XOR, XOR_STARTS[0], momentum=0.5, batch_size=2),
    "langevin": lambda: (
        DYNAMICS["spiked"][0]
        .langevin()
        .solve(POINT, [0.0, 0.2], paths=3, generator=generator())
        .values
    ),
    "equator": lambda: (
        SPIKED.equator(step_size=1.0).solve(POINT, [0.0, 0.1], generator=generator()).values
    ),
    "fixed points": lambda: torch.stack(
        [p.u for p in DYNAMICS["spiked"][0].fixed_points(count=5, seed=1)]
    ),
    "starts": lambda: XOR.starts(2, generator=generator()),
    "lift": lambda: SPIKED.lift(POINT[0], generator=generator())["x"],
    "directions": lambda: (
        tl.GaussianMixture.xor(
            dim=20, snr=2.0, directions="random", generator=generator()
        ).directions
    ),
    "direction": lambda: (
        tl.SpikedTensor(
            dim=20, order=2, snr=2.0, direction="random", generator=generator()
        ).direction
    ),
}


def in_blocks(blocks=None):
    like = {"dtype": torch.float64, "device": "cpu"}
    return tl.NetworkProblem(
        dim=30, width=1, head=torch.nn.Tanh(), loss=torch.nn.functional.mse_loss, snr=2.0,
        means=torch.eye(1, 30, **like), labels=torch.ones(1, **like), device="cpu", blocks=blocks,
        covariance=torch.arange(1, 31, **like) / 30 if blocks else [(1.0, 0.5), (0.5, 0.5)],
    )  # fmt: skip


def blocks_solved(blocks=None):
    problem = in_blocks(blocks)
    u = problem.starts(1, generator=generator())[0]
    return problem.dynamics(step_size=0.5).overall(u, [0.0, 0.2]).values


def of_rows(classes):
    like = {"dtype": torch.float64, "device": "cpu"}
    x = torch.randn(60, 5, generator=generator(), **like)
    y = (x[:, 0] > 0).long() if classes else x[:, 0] + x[:, 1].square()
    data = tl.Covariance.of_data(x, y)
    report = data.diagnose(lr=0.05, steps=100)
    return torch.tensor([f.value for f in report.findings], **like)


def least_squares():
    problem = tl.LinearModel(dim=30, covariance=[(1.0, 0.5), (0.5, 0.5)], noise=0.5, device="cpu")
    return problem.dynamics(step_size=0.5).solve(problem.initial, [0.0, 0.2], band=True).std


def adagrad_norm():
    optimizer = tl.AdaGradNorm(BINARY.model(device="cpu").parameters(), lr=0.5, initial=100.0)
    return BINARY.dynamics(optimizer).solve(STARTS[0], [0.0, 5.0]).values


IN_BLOCKS = in_blocks()
DRAWS["chain, blocks"] = lambda: chained(IN_BLOCKS, IN_BLOCKS.starts(1, generator=generator())[0])
#: what is computed from points without random numbers
COMPUTED = {
    "blocks": blocks_solved,
    "blocks, grouped": lambda: blocks_solved(4),
    "data": lambda: of_rows(classes=False),
    "data, classes": lambda: of_rows(classes=True),
    "least squares": least_squares,
    "AdaGrad-Norm": adagrad_norm,
    "basins": lambda: tl.basins(DYNAMICS["binary"][0], STARTS, time=2.0).final,
    "stationary": lambda: (
        DYNAMICS["spiked"][0].diffusive(POINT.new_tensor([1.0, 1.0])).stationary_covariance()
    ),
    "covariance": lambda: (
        DYNAMICS["spiked"][0].diffusive(POINT.new_tensor([1.0, 1.0])).covariance([0.0, 1.0])
    ),
    "random start": lambda: XOR.random_start(XOR_STARTS[0, :4])[1],
    "random start, spiked": lambda: SPIKED.random_start()[1],
    "components": lambda: BINARY.small_noise().fixed_point_components()[0].point(),
    "accuracy": lambda: BINARY.accuracy(STARTS),
}
for _name, (_dynamics, _u) in DYNAMICS.items():
    COMPUTED[f"solution, {_name}"] = lambda d=_dynamics, u=_u: d.solve(u, [0.0, 0.2]).values
    COMPUTED[f"gradient flow, {_name}"] = lambda d=_dynamics, u=_u: (
        d.solve(u, [0.0, 0.2], corrector=False).values
    )
    COMPUTED[f"jacobian, {_name}"] = lambda d=_dynamics, u=_u: d.jacobian(u)
    COMPUTED[f"diffusion, {_name}"] = lambda d=_dynamics, u=_u: d.diffusion(u)
for _name in ("spiked", "scheduled"):
    COMPUTED[f"band, {_name}"] = lambda pair=DYNAMICS[_name]: (
        pair[0].solve(pair[1], [0.0, 0.2], band=True).std
    )


@pytest.mark.parametrize("name", DRAWS)
def test_with_a_generator_the_global_one_is_left_alone(name):
    """And the same seed gives the same values."""
    before = torch.get_rng_state()
    first = DRAWS[name]()
    torch.testing.assert_close(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(DRAWS[name](), first)


def test_without_a_generator_the_global_one_is_used():
    """The negative control of the test above."""
    before = torch.get_rng_state()
    XOR.model()
    assert not torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_models_and_data_are_drawn_from_the_generator_given(problem):
    before = torch.get_rng_state()
    models = [problem.model(replicas=(2,), generator=generator()) for _ in range(2)]
    data = [problem.sample(3, replicas=(2,), generator=generator())[1] for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, models[0].parameters(), models[1].parameters()))
    assert torch.equal(*data)


CALLS = {**DRAWS, **COMPUTED}


@pytest.mark.parametrize("name", CALLS)
def test_no_tensor_is_made_on_the_default_device(name):
    """Where all that is given is on the CPU, so is all that is made."""
    expected = CALLS[name]()
    with torch.device("meta"):
        found = CALLS[name]()
    assert found.device.type == "cpu"
    # the last bit of a sum depends on where in memory its numbers begin
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_data_have_the_place_of_a_model_made_with_the_same_arguments(problem):
    for place in ({}, {"device": "meta"}, {"dtype": torch.float64}, {"dtype": torch.bfloat16}):
        p = next(problem.model(**place).parameters())
        for tensor in problem.sample(2, **place):
            assert (tensor.device, tensor.dtype) == (p.device, p.dtype)


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_a_second_model_does_not_take_the_data_of_the_first_away(problem):
    first = problem.model()
    problem.model(dtype=torch.float64)
    x, y = problem.sample(4)
    problem.loss(first(x), y).backward()


@pytest.mark.parametrize("made", ["estimated", "explained", "solved", "run"])
def test_samplers_are_asked_for_data_beside_the_model(made):
    """A model of float64, which is not what the problem has, goes with the problem's sampler."""
    model = BINARY.model(generator=generator(), dtype=torch.float64)
    one = {"model": model, "loss": BINARY.loss, "sampler": BINARY.sample}
    if made == "estimated":
        found = tl.estimate(**one, statistics=BINARY.statistics, step_size=0.01, samples=20)
        assert bool(found.drift.value.isfinite().all())
    elif made == "explained":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        probe = tl.Probe(BINARY.loss, BINARY.sample, samples=20)
        with tl.track(model, optimizer, BINARY.statistics, probe=probe) as tracker:
            tracker.stepped()
        assert tracker.explanation().change.names == BINARY.names
    elif made == "solved":
        dynamics = tl.EmpiricalDynamics(
            **one, statistics=BINARY.statistics, step_size=1.0, dim=100, samples=20
        )
        assert bool(dynamics.drift(STARTS).isfinite().all())
    else:
        sized = tl.SizedProblem(**one, statistics=BINARY.statistics, step_size=0.01, dim=100)
        assert len(sized.run(0.05, 2, seed=0)) == 2


def test_a_place_that_a_sampler_has_of_its_own_is_left_alone():
    asked = []

    def sampler(batch, generator=None, device=None, dtype=torch.long):
        asked.append((device, dtype))
        return BINARY.sample(batch, generator=generator)

    model = BINARY.model()
    found = tl.estimate(
        model, BINARY.loss, sampler, BINARY.statistics, step_size=0.01, samples=20
    )  # fmt: skip
    assert found.samples == 20
    assert set(asked) == {(torch.device("cpu"), torch.long)}


def test_meta_tensors_are_noticed():
    """The negative control: a forgotten device shows."""
    with torch.device("meta"), pytest.raises((NotImplementedError, RuntimeError)):
        float(torch.zeros(1) + 1)


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("name", CALLS)
def test_the_default_dtype_does_not_matter_where_one_is_given(name):
    """Problems and points have their own; it is the dtype of what is made inside."""
    expected = CALLS[name]()
    with default_dtype(torch.float64):
        found = CALLS[name]()
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", DYNAMICS)
def test_a_float32_point_gives_float32_slopes_and_float64_solutions(name):
    dynamics, u = DYNAMICS[name]
    single = u.float()
    for found, expected in (
        (dynamics(0.0, single), dynamics(0.0, u)),
        (dynamics.diffusion(single), dynamics.diffusion(u)),
    ):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=2e-3, atol=2e-3)
    one, other = (dynamics.solve(x, [0.0, 0.2]).values for x in (single, u))
    assert one.dtype == torch.float64
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("max_bytes", [64 * 2**20, 1], ids=["ring", "hook"])
def test_a_model_of_either_precision_is_recorded_in_float64(max_bytes):
    single, double = (
        tracked(dtype=dtype, max_bytes=max_bytes) for dtype in (torch.float32, torch.float64)
    )
    assert single.dtype == double.dtype == torch.float64
    # other random numbers in the two: only that float32 is not all there is
    assert torch.equal(single[:, :4], single[:, :4].float().double())
    assert not torch.equal(double[:, :4], double[:, :4].float().double())
