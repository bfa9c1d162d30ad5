"""What problems, dynamics, estimates and probes must hold on CUDA, and the CPU cannot show."""

import io
import os
import subprocess
import sys

import pytest
import torch

import torchlimits as tl
from torchlimits.dynamics import fixed_points, solver
from torchlimits.estimation.estimate import Estimator
from torchlimits.problems.spiked import samplers
from torchlimits.statistics import gram

pytestmark = pytest.mark.gpu

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
MIXTURE = tl.GaussianMixture.binary(dim=100, snr=2.0, ridge=0.05, dtype=torch.float64)


def generator(device, seed=0):
    return torch.Generator(device).manual_seed(seed)


# --- spiked tensors -------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["axis", "random"])
@pytest.mark.parametrize("sampler", ["implicit", "dense"])
def test_steps_on_spiked_tensors_are_captured(sampler, direction):
    problem = tl.SpikedTensor(20, 2, snr=2.0, sampler=sampler, direction=direction)
    runs = tl.train(problem, step_size=0.5, time=1.0, runs=5, device="cuda", progress=False)
    assert runs.values.shape == (5, 41, 2)
    assert bool(runs.values.isfinite().all())
    assert bool((runs.values.diff(dim=1).abs().amax(-1) > 0).all())


def test_memory_that_torch_holds_is_free():
    device = torch.device("cuda")
    torch.cuda.empty_cache()
    before = samplers._free_memory(device)
    held = torch.empty(2**28, dtype=torch.uint8, device=device)
    assert samplers._free_memory(device) < before - 2**27
    del held  # to the allocator, which keeps it
    assert torch.cuda.mem_get_info(device)[0] < before - 2**27
    assert samplers._free_memory(device) > before - 2**26


# --- dynamics -------------------------------------------------------------------------------------


def test_a_stiff_start_leaves_its_group(monkeypatch):
    def right_hand_side(t, u):
        x, rate = u.unbind(-1)
        return torch.stack([-rate * (x - t.sin()) + t.cos(), torch.zeros_like(x)], dim=-1)

    monkeypatch.setattr(solver, "_PATIENCE", 50)
    times = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64)
    u0 = torch.ones(8, 2, dtype=torch.float64)
    u0[3, 1] = 1000.0
    expected = solver.integrate(right_hand_side, u0, times, 1e-8, 1e-10)
    found = solver.integrate(right_hand_side, u0.cuda(), times, 1e-8, 1e-10)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-7, atol=1e-9)


def test_bands_and_limits_at_fixed_points_are_those_of_the_cpu():
    problem = tl.SpikedTensor(100, 2, snr=2.0)
    dynamics = problem.dynamics(step_size=1.0)
    u0, times = torch.tensor([0.1, 1.0], dtype=torch.float64), [0.0, 0.5, 1.0]
    paths = [dynamics.solve(u0.to(d), times, band=True) for d in ("cpu", "cuda")]
    torch.testing.assert_close(paths[0].values, paths[1].values)
    torch.testing.assert_close(paths[0].std, paths[1].std)
    at = torch.tensor([1.0, 1.0], dtype=torch.float64)
    limits = [dynamics.diffusive(at.to(d)) for d in ("cpu", "cuda")]
    covariances = [limit.stationary_covariance().cpu() for limit in limits]
    torch.testing.assert_close(*covariances)
    kinds = [fixed_points.classify(dynamics, at.to(d))[1:] for d in ("cpu", "cuda")]
    assert kinds[0] == kinds[1] == ("stable", 0)
    starts = dynamics.geometry.starts(dynamics, 50, generator("cpu")).cuda()
    found = dynamics.fixed_points(starts)
    expected = dynamics.fixed_points(starts.cpu())
    assert [p.kind for p in found] == [p.kind for p in expected]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.u.cpu(), b.u, rtol=0, atol=1e-6)


@pytest.mark.parametrize("width", [1, 2, 3])
def test_mixtures_are_those_of_the_cpu(width):
    problem = tl.GaussianMixture.binary(dim=100, width=width, snr=2.0, dtype=torch.float64)
    for one in (problem, problem.small_noise()):
        dynamics, u = one.dynamics(step_size=1.0), problem.starts(5, generator=generator("cpu"))
        for value in (dynamics.drift, dynamics.corrector, dynamics.diffusion):
            torch.testing.assert_close(value(u.cuda()).cpu(), value(u), rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(
            dynamics.jacobian(u.cuda()).cpu(), dynamics.jacobian(u), rtol=1e-5, atol=1e-6
        )


def test_derivatives_of_estimates_where_rows_are_dependent():
    """R = 0 and steps that leave it: differences of statistics have no full rank."""
    u = torch.tensor([[1.0, -0.9, 1.0, -0.9, 0.0, 0.0, 0.0]], dtype=torch.float64)

    def jacobian(device):
        model = MIXTURE.model(device=device, generator=generator(device))
        x, y = MIXTURE_DATA

        def sampler(batch, generator=None):
            return x[:batch].to(device), y[:batch].to(device)

        dynamics = tl.EmpiricalDynamics(
            model, MIXTURE.loss, sampler, MIXTURE.statistics, step_size=1.5, dim=100, samples=500
        )
        return dynamics.jacobian(u.to(device)).cpu()

    torch.testing.assert_close(jacobian("cuda"), jacobian("cpu"), rtol=1e-5, atol=1e-6)


MIXTURE_DATA = tl.GaussianMixture.binary(dim=100, snr=2.0, dtype=torch.float64).sample(
    500, generator=generator("cpu")
)


@pytest.mark.parametrize("problem", [MIXTURE, tl.SpikedTensor(100, 2, snr=2.0)])
def test_reduced_chains_on_another_stream(problem):
    """The same paths as on the default stream: one order of work."""
    if isinstance(problem, tl.SpikedTensor):
        u0 = torch.tensor([0.5, 1.0], dtype=torch.float64, device="cuda")
    else:
        u0 = problem.starts(1, generator=generator("cpu"))[0].cuda()

    def values():
        chain = problem.reduced_chain(step_size=1.0)
        return chain.run(u0, 100, runs=50, generator=generator("cuda")).values

    expected = values()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        assert torch.equal(values(), expected)


# --- estimates ------------------------------------------------------------------------------------


def test_an_estimate_on_the_cpu_starts_no_cuda():
    script = """
import torch, torchlimits as tl
problem = tl.SpikedTensor(20, 2, snr=2.0)
generator = torch.Generator().manual_seed(0)
tl.estimate(problem.model(), problem.loss, problem.sample, problem.statistics,
            step_size=0.1, samples=20, generator=generator)
assert not torch.cuda.is_initialized()
"""
    subprocess.run([sys.executable, "-c", script], check=True, env=ENVIRONMENT)


def test_an_estimate_on_cuda_leaves_its_random_numbers_alone():
    model = torch.nn.Sequential(torch.nn.Dropout(0.3), torch.nn.Linear(40, 1)).cuda()

    def sampler(batch, generator=None):
        x = torch.randn(batch, 40, device="cuda", generator=generator)
        return x, torch.zeros(batch, 1, device="cuda")

    def found():
        return tl.estimate(
            model, torch.nn.functional.mse_loss, sampler, {"R": gram("1.weight")},
            step_size=0.1, samples=100, generator=generator("cuda"),
        ).drift.value  # fmt: skip

    state = torch.cuda.get_rng_state()
    assert torch.equal(found(), found())
    assert torch.equal(torch.cuda.get_rng_state(), state)


def test_gradients_stay_outer_products_under_tf32():
    problem = tl.GaussianMixture.xor(dim=500, width=4, snr=2.0)
    model = problem.model(device="cuda", generator=generator("cuda"))
    x, y = problem.sample(300, generator=generator("cuda"), device="cuda")
    found = []
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        try:
            estimator = Estimator(
                model, problem.loss, lambda batch, generator=None: (x[:batch], y[:batch]),
                problem.statistics,
            )  # fmt: skip
            found.append(estimator(dict(model.named_parameters()), step_size=0.1, samples=100))
            assert estimator.gradients.structured
            assert torch.get_float32_matmul_precision() == precision
        finally:
            torch.set_float32_matmul_precision("highest")
    torch.testing.assert_close(found[0].drift.value, found[1].drift.value, rtol=1e-5, atol=1e-6)


# --- probes ---------------------------------------------------------------------------------------


def steps(model, optimizer, count):
    for _ in range(count):
        x, y = MIXTURE.sample(1)
        p = next(model.parameters())
        optimizer.zero_grad()
        MIXTURE.loss(model(x.to(p)), y.to(p)).backward()
        optimizer.step()


def probed(device):
    model = MIXTURE.model(device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1 / 100, weight_decay=MIXTURE.ridge)
    probe = tl.Probe(MIXTURE.loss, MIXTURE.sample, every=5, samples=16)
    return model, optimizer, tl.track(model, optimizer, MIXTURE.statistics, probe=probe)


def test_a_probe_follows_its_model_to_another_device():
    model, optimizer, tracker = probed("cpu")
    steps(model, optimizer, 10)
    model.to("cuda")
    steps(model, optimizer, 10)
    found = tracker.explanation()
    assert found.change.steps.tolist() == [0, 5, 10, 15, 20]
    assert bool(found.residual.values.isfinite().all())
    assert all(x.device.type == "cpu" for row in tracker._observer._rows for x in row)


@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_a_checkpoint_of_a_probe_is_loaded_to_any_device(where):
    model, optimizer, tracker = probed("cuda")
    steps(model, optimizer, 7)
    file = io.BytesIO()
    torch.save(tracker.state_dict(), file)
    file.seek(0)
    expected = tracker.explanation().change.values
    other = tl.track(
        model, optimizer, MIXTURE.statistics,
        probe=tl.Probe(MIXTURE.loss, MIXTURE.sample, every=5, samples=16),
    )  # fmt: skip
    other.load_state_dict(torch.load(file, map_location=where, weights_only=True))
    steps(model, optimizer, 3)
    found = other.explanation().change
    assert found.steps.tolist() == [0, 5, 10]
    torch.testing.assert_close(found.values[:2], expected[:2])


# --- optimizers and processes ---------------------------------------------------------------------


@pytest.mark.parametrize("fused", [False, True])
def test_a_grad_scaler_changes_no_normalised_step(fused):
    x = torch.nn.Parameter(torch.ones(2, device="cuda"))
    optimizer = tl.NormalizedSGD([x], lr=0.5, fused=fused)
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
    scaler.scale((3 * x).sum()).backward()
    scaler.step(optimizer)
    torch.testing.assert_close(x.detach().cpu(), torch.full((2,), 0.5))


TRAINING = """
import sys
import torch
import torchlimits as tl
from torch import distributed
from torchlimits.ensemble.processes import process_group

with process_group("cuda") as group:
    assert distributed.get_backend(group) == "gloo"
    assert torch.cuda.current_device() < torch.cuda.device_count()
    for path in sys.argv[1:]:
        tl.train(
            tl.GaussianMixture.binary(dim=50, snr=2.0), step_size=1.0, time=0.5, runs=6, every=5,
            device="cuda", progress=False, path=path, group=group,
        )
"""


def test_two_processes_share_a_gpu(tmp_path):
    """Each trains runs of its own, and the same training gives the same runs."""
    script = tmp_path / "training.py"
    script.write_text(TRAINING)
    paths = [tmp_path / "one.npz", tmp_path / "two.npz"]
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run(
        [sys.executable, *command, script, *paths], check=True, env=ENVIRONMENT, timeout=1800
    )
    values, again = (tl.Trajectory.load(path).values for path in paths)
    assert values.shape == (6, 6, 7)
    assert bool(values.isfinite().all())
    final = values[:, -1]
    assert len(final.unique(dim=0)) == 6
    assert torch.equal(again, values)
