"""`start_of`: where ``torchlimits run`` starts, and, in words, what theory says from there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from torchlimits.problems.mixture.problem import GaussianMixture
from torchlimits.problems.network.problem import NetworkProblem
from torchlimits.problems.network.teacher_student import TeacherStudent
from torchlimits.problems.problem import Problem
from torchlimits.problems.spiked.problem import SpikedTensor

if TYPE_CHECKING:
    from torchlimits.cli.options import Options

#: the overlap of an informed start with what it leans to
_OVERLAP = 0.5
#: the overlap of a student's neuron with a teacher's: less, to see the plateau
_OVERLAP_WITH_TEACHER = 0.2
#: sizes of the second layer's weights at an informed start, of the first and the last neuron
_SIZES = 1.2, 0.8

_ABOUT_MIXTURE = (
    f"The start is informed: each neuron leans towards one mean, with overlap {_OVERLAP}, and its "
    "weight in the second layer has the sign of that mean's label; the rest of the first layer is "
    "random. This is off the saddle near which random starts lie, so that theory predicts every "
    "run from the first step on. See --start random for the saddle."
)
_ABOUT_NETWORK = (
    f"The start is informed: each neuron leans towards the mean of one class, with overlap "
    f"{_OVERLAP}; the rest of the first layer and the head are random, the biases 0. --start "
    "random has random overlaps too."
)
_ABOUT_STUDENT = (
    "The start is informed: each neuron of the student leans towards one of the teacher's, with "
    f"overlap {_OVERLAP_WITH_TEACHER}; the rest is random. This is off the symmetric plateau, a "
    "saddle, near which random starts wait, so that theory predicts when the neurons specialise. "
    "See --start random for the plateau."
)
_ABOUT_RANDOM_NETWORKS = (
    "The starts are random, and so are the heads, one for each run. The overlaps with the "
    "means are small, yet this is no saddle: a random head moves them all at once, so that theory "
    "predicts every run from its own measured start."
)


def start_of(options: Options, problem: Problem) -> tuple[torch.nn.Module | None, str]:
    """Return the model that all runs start from, None for random ones, and a text about it.

    Args:
        options: the run's options.
        problem: the problem that they make.
    """
    generator = torch.Generator(getattr(problem, "device", "cpu")).manual_seed(options.seed)
    random = options.start == "random"
    if isinstance(problem, SpikedTensor):
        if random:
            return None, _about_random(problem, options.step_size)
        at = (_OVERLAP, 1 - _OVERLAP**2)
        return problem.model(at=at, generator=generator), _about_spike(problem, options)
    if isinstance(problem, GaussianMixture):
        if random:
            return None, _about_random(problem, options.step_size)
        return _leaning(problem, generator), _ABOUT_MIXTURE
    if isinstance(problem, TeacherStudent):
        if random:
            return None, _about_random(problem, options.step_size)
        return _leaning_to_teacher(problem, generator), _ABOUT_STUDENT
    assert isinstance(problem, NetworkProblem)
    if random:
        return None, _ABOUT_RANDOM_NETWORKS
    return _leaning_to_classes(problem, generator), _ABOUT_NETWORK


def _lean(first: torch.Tensor, directions: torch.Tensor, overlaps: torch.Tensor) -> None:
    """Give the rows of a first layer their overlaps with directions."""
    directions, overlaps = directions.to(first), overlaps.to(first)
    with torch.no_grad():
        first -= first @ directions.mT @ directions
        first += overlaps @ directions


def _leaning(problem: GaussianMixture, generator: torch.Generator) -> torch.nn.Module:
    """A network whose neurons lean to the means in turn, with the sign of their labels."""
    served = torch.arange(problem.width) % len(problem.means)
    model = problem.model(generator=generator)
    first, second = (model.get_parameter(f"{name}.weight") for name in ("first", "second"))
    _lean(first, problem.directions, _OVERLAP * problem.coordinates[served])
    signs = torch.as_tensor(problem.labels)[served].to(second) * 2 - 1
    with torch.no_grad():
        second.copy_(signs * torch.linspace(*_SIZES, problem.width).to(second))
    return model


def _leaning_to_classes(problem: NetworkProblem, generator: torch.Generator) -> torch.nn.Module:
    """A network whose neurons lean to the means in turn, with a random head."""
    served = torch.arange(problem.width) % len(problem.means)
    model = problem.model(generator=generator)
    first = model.get_parameter(f"{problem.first}.weight")
    _lean(first, problem.directions, _OVERLAP * problem.coordinates[served])
    return model


def _leaning_to_teacher(problem: TeacherStudent, generator: torch.Generator) -> torch.nn.Module:
    """A student whose neurons lean to the teacher's, one each; the rest lean to none."""
    rows = problem.teacher.rows
    model = problem.model(generator=generator)
    overlaps = rows.new_zeros(problem.width, rows.shape[1])
    few = min(len(overlaps), len(rows))
    overlaps[:few] = _OVERLAP_WITH_TEACHER * rows[:few]
    _lean(model.get_parameter("first.weight"), problem.directions, overlaps)
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


def _about_random(problem: Problem, step_size: float) -> str:
    small = f"of order dim^(-1/2) = {problem.dim**-0.5:.2g}"
    if isinstance(problem, SpikedTensor):
        critical = problem.dynamics(step_size=step_size).critical_snr
        if problem.order > 2 or problem.snr <= critical:
            return (
                f"The starts are random: m is {small}, near the equator m = 0, which attracts "
                "them. Theory predicts that m stays there; what is seen is its fluctuation."
            )
        what = f"m is {small}, near the equator m = 0, a saddle"
    elif isinstance(problem, TeacherStudent):
        what = f"the overlaps with the teacher are {small}, near the symmetric plateau, a saddle"
    else:
        what = f"the overlaps with the means are {small}, near a saddle"
    return (
        f"The starts are random: {what}. The time at which a run escapes from it is random, so "
        "that runs from similar starts part from each other and from the predicted curve. Their "
        "law (--band law) holds nevertheless, and a linear band does not until they have escaped. "
        "--start informed begins off the saddle."
    )
