"""`diagnose`: whether a theory for Gaussian inputs holds for given rows.

The bounds are those of measured runs, which docs/theory/real_data.md lists.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from torchlimits import _checks
from torchlimits.problems.data.expected_risk import DIVERGED, expected_risk
from torchlimits.problems.data.moments import Moments
from torchlimits.problems.data.report import DataReport, Finding, Level
from torchlimits.problems.data.rows import Rows

#: relative differences of predicted risks: up to the first they hold, above the second they fail
RISK = (0.05, 0.2)
#: how much nearer to instability than Gaussian data a learning rate may be, in parts of the limit:
#: risks then differed by at most 0.8 times that
_NEARER = RISK[0] / 0.8
#: lr lambda_max: the limit of small steps is taken to be good below the first, void above the other
_STIFF = (0.05, 0.5)
#: a limit below this part of that of Gaussian data is worth a word without a learning rate
_LOWER = 0.8
#: by how much of the pooled covariance those of the classes may differ
_CLASSES = 0.3
#: |mean|^2 above this part of the trace is not small
_MEAN = 0.01


@dataclass(frozen=True)
class Training:
    """How a model is trained: what `diagnose` is told about it.

    Attributes:
        lr, batch_size, momentum: of SGD; lr is None if it is not known.
        steps: how many; None if it is not known.

    Example:
        >>> Training(0.01, 100, 4, 0.5).rate
        0.005
    """

    lr: float | None
    steps: int | None
    batch_size: int
    momentum: float

    def __post_init__(self) -> None:
        if self.lr is not None:
            _checks.positive("lr", self.lr)
        if self.steps is not None:
            _checks.positive_int("steps", self.steps)
        _checks.positive_int("batch_size", self.batch_size)
        if not 0 <= _checks.non_negative("momentum", self.momentum) < 1:
            raise ValueError(f"expected 0 <= momentum < 1, got {self.momentum}")

    @property
    def rate(self) -> float:
        """lr / (batch_size (1 - momentum)), what the noise of the gradients is multiplied by."""
        assert self.lr is not None
        return self.lr / (self.batch_size * (1 - self.momentum))

    @property
    def times(self) -> float:
        """What stable learning rates are multiplied by, beside single samples without momentum."""
        return self.batch_size * (1 - self.momentum)


def diagnose(rows: Rows, moments: Moments, training: Training) -> DataReport:
    """Every finding about rows, with their moments."""
    count, dim = rows.deviations.shape
    risk = [*_risk(rows, moments, training)]
    findings = [
        *risk,
        _stability(moments, training, bool(risk)),
        _sufficient(moments, training),
        *_stiffness(moments, training),
        _concentration(moments),
        *_kappa(moments, training, bool(risk)),
        *_classes(rows, moments),
        *_mean(rows, moments),
        *_passes(count, training),
        _spectrum(count, dim),
    ]
    return DataReport(findings, count, dim)


def _level(size: float, bounds: tuple[float, float]) -> Level:
    return "holds" if size <= bounds[0] else "doubtful" if size <= bounds[1] else "fails"


def _risk(rows: Rows, moments: Moments, training: Training) -> Iterator[Finding]:
    """The expected risk on these rows over that of Gaussian data, where it differs most."""
    known = training.lr is not None and training.steps is not None
    if not known or rows.classes is not None or moments.residuals is None:
        return
    assert training.lr is not None
    assert training.steps is not None
    if training.rate >= 2 * moments.mean_square:
        return  # `_stability` says what there is to say
    time = training.lr / (1 - training.momentum) * training.steps
    _, found, theory = expected_risk(moments, training.rate, time)
    ratios = found / theory
    worst = int((ratios - 1).abs().argmax())
    ratio = float(ratios[worst])
    size = abs(ratio - 1)
    level = _level(size, RISK)
    if ratio >= DIVERGED or not ratios.isfinite().all():
        sentence = "The expected risk of least squares on these rows grows without bound."
    else:
        side = "above" if ratio > 1 else "below"
        sentence = (
            f"The expected risk of least squares from w = 0 on these rows comes to lie "
            f"{100 * size:.2g} % {side} the theory for Gaussian inputs"
            + ("." if level == "holds" else ": use fourth_moments=True, or a lower lr.")
        )
    yield Finding("risk / Gaussian risk", ratio, None, 1.0, level, sentence)


def _stability(moments: Moments, training: Training, decided: bool) -> Finding:
    """The largest stable learning rate; below it the risk decides, where that is known."""
    limit = moments.mean_square * training.times
    gaussian = moments.gaussian_mean_square * training.times
    level: Level = "note"
    if training.lr is None:
        sentence = (
            f"Least squares on these rows is stable in the mean square below lr = {limit:.2g}"
        )
        sentence += f", where Gaussian theory says {gaussian:.2g}."
        if limit < _LOWER * gaussian:
            level = "doubtful"
            sentence += " Between the two, runs diverge that are predicted to be stable."
        else:
            level = "holds"
    elif training.lr >= limit:
        level = "fails"
        calls = "stable" if training.lr < gaussian else "unstable, too"
        sentence = (
            f"Gaussian theory calls lr = {training.lr:.2g} {calls}; for these data the expected "
            f"risk of least squares grows without bound from lr = {limit:.2g} on."
        )
    else:
        nearer = training.lr / limit - training.lr / gaussian
        level = "note" if decided else "holds" if nearer <= _NEARER else "doubtful"
        sentence = (
            f"lr = {training.lr:.2g} is stable for least squares on these rows, at "
            f"{100 * training.lr / limit:.2g} % of the largest stable one; for Gaussian data it is "
            f"{100 * training.lr / gaussian:.2g} %"
            + ("." if nearer <= _NEARER else ": nearer to it, risks may be larger than predicted.")
        )
    return Finding("largest stable lr", limit, None, gaussian, level, sentence)


def _sufficient(moments: Moments, training: Training) -> Finding:
    limit = moments.sufficient * training.times
    sentence = (
        f"Below lr = {limit:.2g} the mean distance from the optimum of least squares without noise "
        "falls at every step, whatever the start."
    )
    gaussian = moments.gaussian_sufficient * training.times
    return Finding("sufficient lr", limit, None, gaussian, "note", sentence)


def _stiffness(moments: Moments, training: Training) -> Iterator[Finding]:
    if training.lr is None:
        return
    value = training.lr / (1 - training.momentum) * float(moments.eigenvalues.max())
    level = _level(value, _STIFF)
    meaning = {
        "holds": "Steps are small in every direction, as the limit takes them to be.",
        "doubtful": "Steps along the largest eigenvector are not small: there the limit is off by "
        "about this part.",
        "fails": "Steps along the largest eigenvector are too large for the limit of small steps.",
    }[level]
    yield Finding("lr lambda_max", value, None, _STIFF[0], level, meaning)


def _concentration(moments: Moments) -> Finding:
    value, error = moments.concentration
    gaussian = moments.gaussian_concentration
    sentence = (
        "Lengths of inputs vary about as much as those of Gaussian data."
        if value <= 1.5 * gaussian
        else f"Lengths of inputs vary {value / gaussian:.2g} times as much as those of Gaussian "
        "data: long ones make larger steps, which lowers the largest stable lr."
    )
    return Finding("sd(|x|^2) / E|x|^2", value, error, gaussian, "note", sentence)


def _kappa(moments: Moments, training: Training, decided: bool) -> Iterator[Finding]:
    """The noise at the optimum, over that of residuals independent of lengths."""
    if moments.residuals is None or float(moments.squared_residuals.mean()) == 0:
        return
    value, error = moments.kappa
    size, level = abs(value - 1), "note"
    sentence = (
        "Residuals of the best linear prediction are about as large for long inputs as for short "
        "ones"
        if size <= 0.1
        else f"Residuals are {'larger' if value > 1 else 'smaller'} where inputs are long: the "
        f"noise of the gradients at the optimum is {value:.2g} times that of the theory"
    )
    if training.lr is not None:
        # the corrector's part of the risk at the end, times what it is wrong by
        change = size * min(1.0, training.rate * float(moments.eigenvalues.sum()) / 2)
        level = "note" if decided else _level(change, RISK)
        sentence += f", which moves the risk at the end by about {100 * change:.2g} %"
    yield Finding("kappa", value, error, 1.0, level, sentence + ".")


def _classes(rows: Rows, moments: Moments) -> Iterator[Finding]:
    """The differences of the covariances of classes, beyond what their sampling errors make."""
    if rows.classes is None or len(rows.classes) < 2:
        return
    pooled = moments.eigenvalues
    size = float(pooled.square().sum())
    found = noise = 0.0
    for a, share in enumerate(rows.shares.tolist()):
        which = rows.component == a
        own = moments.coordinates[which]
        difference = own.mT @ own / len(own) - torch.diag(pooled)
        found += share * float(difference.square().sum()) / size
        # the variance of the entries of v v^T over the rows, of which the pooled one has its part
        entries = float(moments.squares[which].square().mean()) / size - 1
        noise += share * (1 - share) * entries / (len(own) - 1)
    beyond = max(found - noise, 0.0) ** 0.5
    level: Level = "holds" if beyond <= _CLASSES else "doubtful"
    sentence = (
        f"Covariances of the classes differ from the pooled one by {100 * beyond:.2g} % beyond "
        f"what sampling does ({100 * noise**0.5:.2g} %)"
        + (
            "."
            if level == "holds"
            else ": a prediction with the pooled one leaves that out; give eigenvalues for each "
            "component where they have a common basis."
        )
    )
    yield Finding("classes' covariances", found**0.5, None, noise**0.5, level, sentence)


def _mean(rows: Rows, moments: Moments) -> Iterator[Finding]:
    if rows.classes is not None or not bool(rows.means.any()):
        return
    value = float(rows.means.square().sum() / moments.eigenvalues.sum())
    if value > _MEAN:
        sentence = (
            "Inputs have a mean, which a linear model without bias does not know: train on x less "
            "its mean, for which all numbers here are, or give centre=False."
        )
        yield Finding("|mean|^2 / tr Lambda", value, None, _MEAN, "note", sentence)


def _passes(count: int, training: Training) -> Iterator[Finding]:
    if training.steps is None:
        return
    value = training.steps * training.batch_size / count
    sentence = (
        "Rows are seen less than once on average: the risk on fresh data goes along."
        if value <= 1
        else "Rows are seen several times: what is predicted is the risk on these rows, and the "
        "risk on fresh data is larger."
    )
    yield Finding("passes", value, None, 1.0, "note", sentence)


def _spectrum(count: int, dim: int) -> Finding:
    value = (dim / count) ** 0.5
    sentence = (
        f"Eigenvalues of fresh data differ from those of these rows by up to about "
        f"{100 * value:.2g} % (Marchenko and Pastur): the prediction is for these rows."
    )
    return Finding("sqrt(N / rows)", value, None, None, "note", sentence)
