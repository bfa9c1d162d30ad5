"""`start_of`: where ``torchlimits run`` starts, and in words what theory has to say from there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from torchlimits.problems.mixture.problem import GaussianMixture
from torchlimits.problems.spiked.problem import SpikedTensor

if TYPE_CHECKING:
    from torchlimits.cli.problems import Options

#: the overlap of an informed start with what it leans to
_OVERLAP = 0.5
#: sizes of the second layer's weights at an informed start, of the first and the last neuron
_SIZES = 1.2, 0.8


def start_of(
    options: Options, problem: GaussianMixture | SpikedTensor
) -> tuple[torch.nn.Module | None, str]:
    """Return the model that all runs start from, None for random ones, and a text about it.

    Args:
        options: of the run.
        problem: the problem that they make.
    """
    if options.start == "random":
        return None, _about_random(problem, options.step_size)
    generator = torch.Generator(problem.device).manual_seed(options.seed)
    if isinstance(problem, SpikedTensor):
        at = (_OVERLAP, 1 - _OVERLAP**2)
        return problem.model(at=at, generator=generator), _about_spike(problem, options)
    return _leaning(problem, generator), (
        f"The start is informed: each neuron leans towards one mean, with overlap {_OVERLAP}, and "
        "its weight in the second layer has the sign of that mean's label; the rest of the first "
        "layer is random. This is off the saddle near which random starts lie, so that theory "
        "predicts every run from the first step on. See --start random for the saddle."
    )


def _leaning(problem: GaussianMixture, generator: torch.Generator) -> torch.nn.Module:
    """A network whose neurons lean to the means in turn, with the sign of their labels."""
    K, means = problem.width, len(problem.means)
    model = problem.model(generator=generator)
    first, second = (model.get_parameter(f"{name}.weight") for name in ("first", "second"))
    like: dict[str, Any] = {"dtype": first.dtype, "device": first.device}
    served = torch.arange(K) % means
    directions = problem.directions.to(**like)
    overlaps = _OVERLAP * problem.coordinates[served].to(**like)
    signs = torch.as_tensor(problem.labels)[served].to(**like) * 2 - 1
    with torch.no_grad():
        first -= first @ directions.mT @ directions
        first += overlaps @ directions
        second.copy_(signs * torch.linspace(*_SIZES, K, **like))
    return model


def _about_spike(problem: SpikedTensor, options: Options) -> str:
    text = (
        f"The start is informed: its overlap m with the spike is {_OVERLAP}, its length 1, its "
        "direction random otherwise. This is off the equator m = 0 near which random starts lie, "
        "so that theory predicts every run from the first step on."
    )
    dynamics = problem.dynamics(step_size=options.step_size)
    critical = dynamics.critical_snr
    if problem.snr <= critical:
        return f"{text} The snr is not above the critical one, {critical:.4g}, so m goes to 0."
    if problem.order == 2:
        return f"{text} Above the critical snr, {critical:.4g}, m goes to {dynamics.m_star():.4g}."
    barrier = dynamics.m_dagger()
    side = "above" if barrier < _OVERLAP else "NOT above"
    return f"{text} That is {side} the barrier m = {barrier:.4g} that a start has to be beyond."


def _about_random(problem: GaussianMixture | SpikedTensor, step_size: float) -> str:
    small = f"of order dim^(-1/2) = {problem.dim**-0.5:.2g}"
    if isinstance(problem, SpikedTensor):
        critical = problem.dynamics(step_size=step_size).critical_snr
        if problem.order > 2 or problem.snr <= critical:
            return (
                f"The starts are random: m is {small}, near the equator m = 0, which attracts "
                "them. Theory predicts that m stays there; what is seen of it is its fluctuation."
            )
        what = f"m is {small}, near the equator m = 0, a saddle"
    else:
        what = f"the overlaps with the means are {small}, near a saddle"
    return (
        f"The starts are random: {what}. The time at which a run escapes from it is random, so "
        "that runs from like starts part from each other and from the prediction, and the band "
        "does not hold until they have escaped. --start informed begins off the saddle."
    )
