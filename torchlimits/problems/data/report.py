"""`DataReport`: what data say about a theory for Gaussian inputs, in numbers and in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torchlimits._text import Table, Tabular

#: a note says something about the data and nothing of the prediction
Level = Literal["note", "holds", "doubtful", "fails"]


@dataclass(frozen=True)
class Finding:
    """One number of the data, beside its bound, and what it means for a prediction.

    Attributes:
        name: what was measured.
        value: the number.
        standard_error: its standard error; None where it is exact for these rows.
        reference: the number of Gaussian data of the same covariance, or the bound; None if neither
            is known.
        level: ``"holds"``, ``"doubtful"``, ``"fails"``, or ``"note"`` if it does not judge.
        sentence: what it means.

    Example:
        >>> print(Finding("passes", 2.0, None, 1.0, "note", "Each row is seen twice."))
        passes: 2 (1): Each row is seen twice.
    """

    name: str
    value: float
    standard_error: float | None
    reference: float | None
    level: Level
    sentence: str

    def __str__(self) -> str:
        beside = "" if self.reference is None else f" ({self.reference:.3g})"
        return f"{self.name}: {self.shown}{beside}: {self.sentence}"

    @property
    def shown(self) -> str:
        """The number with its standard error."""
        error = "" if self.standard_error is None else f" ± {self.standard_error:.1g}"
        return f"{self.value:.3g}{error}"


@dataclass(frozen=True)
class DataReport(Tabular):
    """What `DataCovariance.diagnose` found: does the theory hold for these data?

    Printed, it is a table with one finding a row; in notebooks, too.

    Attributes:
        findings: a `Finding` each.
        rows, dim: the shape of the data.

    Example:
        >>> finding = Finding("passes", 2.0, None, 1.0, "note", "Each row is seen twice.")
        >>> report = DataReport([finding], rows=100, dim=3)
        >>> report.verdict
        'holds'
        >>> print(report.text(width=80))
        holds: Nothing measured here speaks against the theory of Gaussian inputs.
        (100 rows, N = 3)
                data  Gaussian or bound  verdict  meaning
        passes     2                  1     note  Each row is seen twice.
        >>> report["passes"].value, report.html().count("<tr>")
        (2.0, 2)
    """

    findings: Sequence[Finding]
    rows: int
    dim: int

    @property
    def verdict(self) -> Literal["holds", "doubtful", "fails"]:
        """The worst level of all findings."""
        levels = {f.level for f in self.findings}
        return "fails" if "fails" in levels else "doubtful" if "doubtful" in levels else "holds"

    @property
    def sentence(self) -> str:
        """What the verdict rests on."""
        if self.verdict == "holds":
            return "Nothing measured here speaks against the theory of Gaussian inputs."
        return " ".join(f.sentence for f in self.findings if f.level == self.verdict)

    def __getitem__(self, name: str) -> Finding:
        """The finding of this name."""
        for finding in self.findings:
            if finding.name == name:
                return finding
        raise KeyError(f"expected one of {[f.name for f in self.findings]}, got {name!r}")

    def text(self, width: int | None = None) -> str:
        """The table as text, without a line longer than ``width`` where words allow that.

        Args:
            width: in characters.
        """
        return self._table().text(width)

    def html(self) -> str:
        """The table as HTML, as notebooks show it."""
        return self._repr_html_()

    def _table(self) -> Table:
        rows = [["", "data", "Gaussian or bound", "verdict", "meaning"]]
        for f in self.findings:
            reference = "" if f.reference is None else f"{f.reference:.3g}"
            rows.append([f.name, f.shown, reference, f.level, f.sentence])
        title = f"{self.verdict}: {self.sentence}\n({self.rows} rows, N = {self.dim})"
        return Table(rows, title=title, prose=True)
