"""The kernel for mixtures: the numbers of autograd and torch.optim on the data that it draws."""

import os
import subprocess
import sys

import pytest
import torch

import torchlimits as tl

pytest.importorskip("triton")

#: N, K, batch, momentum, in registers
CASES = [(50, 4, 1, 0.0, True), (50, 3, 1, 0.0, False), (37, 3, 3, 0.9, True), (9, 1, 2, 0.0, True)]


def gap(case, device):
    """The largest difference to steps of autograd, and how far the weights have moved."""
    from torchlimits.problems.mixture.kernel import MixtureSGD

    dim, width, batch, momentum, in_registers = case
    problem = tl.GaussianMixture.xor(dim, width, snr=4.0, ridge=0.1, device=device)
    generator = torch.Generator(device).manual_seed(0)
    model, reference = (problem.model(replicas=(5,), generator=generator) for _ in range(2))
    reference.load_state_dict(model.state_dict())
    start = model.first.weight.detach().clone()

    def sgd(model):
        return torch.optim.SGD(model.parameters(), lr=2 / dim, momentum=momentum, weight_decay=0.1)

    kernel = MixtureSGD(
        problem.components,
        model,
        sgd(model),
        batch_size=batch,
        seed=2**40 + 1,
        in_registers=in_registers,
    )
    optimizer = sgd(reference)
    means, labels = (x.to(start) for x in (problem.means, problem.labels))
    for step in range(6):
        z, a = (torch.stack(part, 1) for part in zip(*(kernel.drawn(step, b) for b in range(batch)),
                                                     strict=True))  # fmt: skip
        optimizer.zero_grad()
        x = means[a] + problem.snr**-0.5 * z
        problem.loss(reference(x), labels[a]).backward()
        optimizer.step()
    kernel.advance(4)
    kernel.advance(2)
    pairs = zip(model.parameters(), reference.parameters(), strict=True)
    with torch.no_grad():
        return (
            max(float((p - q).abs().max()) for p, q in pairs),
            float((model.first.weight - start).abs().max()),
        )


def moments(device):
    """z of what independent normals and uniform components make 0, for 200 replicas of N = 64."""
    from torchlimits.problems.mixture.kernel import MixtureSGD

    problem = tl.GaussianMixture.xor(64, 4, snr=4.0, device=device)
    model = problem.model(replicas=(200,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kernel = MixtureSGD(problem.components, model, optimizer, batch_size=2, seed=3)
    z, a = kernel.drawn(5)
    after, other = kernel.drawn(6)[0], kernel.drawn(5, 1)[0]
    z, after, other = z.double(), after.double(), other.double()
    count = z.numel() ** 0.5
    found = {
        "mean": z.mean() * count,
        "variance": (z.square() - 1).mean() * count / 2**0.5,
        "fourth moment": (z**4 - 3).mean() * count / 96**0.5,
        "next step": (z * after).mean() * count,
        "next sample": (z * other).mean() * count,
        "next replica": (z[1:] * z[:-1]).mean() * count,
        "cosine and sine": (z[:, 0::2] * z[:, 1::2]).mean() * (count / 2**0.5),
        "their squares": ((z[:, 0::2].square() - 1) * (z[:, 1::2].square() - 1)).mean()
        * (count / 2**0.5 / 2),
        "neighbours": (z[:, 1:] * z[:, :-1]).mean() * count,
    }
    shares = a.bincount(minlength=4).double() / 200 - 0.25
    found |= {f"component {i}": share * (200 / (0.25 * 0.75)) ** 0.5
              for i, share in enumerate(shares)}  # fmt: skip
    return {name: float(z) for name, z in found.items()}


def decay(device, in_registers):
    """Relative error of the rate at which the ridge alone shrinks weights, in small steps.

    Weights are across the means, and the noise is small: h and the gradient are some 1e-6. A factor
    1 - lr alpha rounded to float32 would be wrong by 1.3 %.
    """
    from torchlimits.problems.mixture.kernel import MixtureSGD

    problem = tl.GaussianMixture.binary(128, 2, snr=1e12, device=device)
    model = problem.model(replicas=(4,))
    with torch.no_grad():
        model.second.weight.zero_()
        model.first.weight.uniform_(0.5, 1, generator=torch.Generator(device).manual_seed(0))
        model.first.weight[..., 0] = 0
    before = model.first.weight.detach()[..., 1:].double().log()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5, weight_decay=0.1)
    kernel = MixtureSGD(
        problem.components, model, optimizer, batch_size=1, seed=0, in_registers=in_registers
    )
    kernel.advance(60)
    rate = (before - model.first.weight.detach()[..., 1:].double().log()).mean() / 60
    return abs(float(rate) / 1e-6 - 1)


def check(device):
    for case in CASES:
        difference, moved = gap(case, device)
        assert difference < 2e-6, f"{case}: {difference}"
        assert moved > 0.05, f"{case}: {moved}"
    for in_registers in (True, False):
        error = decay(device, in_registers)
        assert error < 4e-3, f"the ridge is wrong by {error}, in_registers={in_registers}"
    wrong = {name: z for name, z in moments(device).items() if abs(z) > 4}
    assert not wrong, wrong


def test_weights_are_refused():
    problem = tl.GaussianMixture.binary(20, 2, snr=4.0, weights=[0.7, 0.3])
    model = problem.model(replicas=(3,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="components of equal probability"):
        problem.kernel(model, optimizer, batch_size=1, seed=0)


@pytest.mark.slow
def test_interpreted_it_is_autograd_and_sgd():
    """In a process of its own: whether Triton interprets is decided when it is imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
def test_compiled_it_is_autograd_and_sgd():
    check("cuda")


@pytest.mark.gpu
def test_a_run_does_not_depend_on_how_many_there_are():
    problem = tl.GaussianMixture.binary(30, 2, snr=4.0)
    start = problem.model(generator=torch.Generator().manual_seed(0))
    options = {"step_size": 1.0, "time": 1.0, "device": "cuda", "progress": False, "start": start}
    many, few = (tl.train(problem, runs=runs, **options).final for runs in (50, 7))
    torch.testing.assert_close(many[:7], few, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("problem", "options", "message"),
    [
        (tl.SpikedTensor(20, 2, snr=2.0), {}, "a problem with a kernel, got SpikedTensor"),
        (tl.GaussianMixture.xor(20, 4, snr=2.0), {"dtype": torch.float64}, "float32"),
        (tl.GaussianMixture.xor(9000, 4, snr=2.0), {"momentum": 0.5}, "momentum=0"),
    ],
)
def test_what_has_no_kernel_is_refused_if_asked_for(problem, options, message):
    given = {"step_size": 1.0, "time": 0.01, "device": "cuda", "progress": False, **options}
    with pytest.raises(ValueError, match=message):
        tl.train(problem, compiled=True, **given)
    assert len(tl.train(problem, **given)) > 1  # by default, without


if __name__ == "__main__":
    check("cpu")
