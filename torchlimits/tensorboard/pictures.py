"""`pictures`: what the image dashboard shows, all statistics at once and each panel by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torchlimits.comparison.match import Match
from torchlimits.tensorboard import summaries
from torchlimits.tensorboard.events import Summary  # pyright: ignore[reportAttributeAccessIssue]
from torchlimits.trajectory import Trajectory

if TYPE_CHECKING:
    from torchlimits.figures.panels import Panel

#: more of them would be slow to draw and to look through
_MOST = 8


def pictures(match: Match) -> list[Summary]:
    """The overlay of all statistics, and each of its panels large enough to be read unopened.

    A thumbnail of TensorBoard is about 400 pixels wide. The panels show the first run.
    """
    # matplotlib takes most of a second to load: only those who write need it
    from torchlimits import figures
    from torchlimits.figures.draw import overlay_of
    from torchlimits.figures.panels import panels_of

    whole = overlay_of(match)
    # in full size, the picture is to fit into a window beside TensorBoard's settings
    found = [summaries.image("torchlimits/overlay", figures.png(whole, dpi=80))]
    panels = panels_of(match.all_names)
    if len(panels) == 1 and all(path.runs == 1 for path in match.sides.values()):
        return found
    both = set(match.names)
    for panel in panels[:_MOST]:
        shown = panel.only(both)
        shown = shown if shown.names else panel
        tag = f"torchlimits/overlay/{_title(shown.names)}"
        found.append(summaries.image(tag, _picture(match, shown)))
    return found


def _title(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"


def _picture(match: Match, panel: Panel) -> bytes:
    """A panel of some statistics: all of them of both sides, or all of one side."""
    from torchlimits import figures
    from torchlimits.figures.draw import overlay_of

    both = set(match.names)
    parts = {side: _part(path, panel.names) for side, path in match.sides.items()}
    if not both.issuperset(panel.names) and parts.get("measured") is not None:
        parts = {"measured": parts["measured"]}
    sides = {side: part for side, part in parts.items() if part is not None}
    common = [name for name in panel.names if name in both]
    first = [one for one in match.humps if one.run == 0]
    figure = overlay_of(Match(sides, common, {}, first), panels=[panel])
    return figures.png(figure, dpi=110)


def _part(path: Trajectory, names: Sequence[str]) -> Trajectory | None:
    """The statistics of a panel in the first run, without a title; None if it has none of them."""
    known = set(path.names)
    own = [name for name in names if name in known]
    if not own:
        return None
    return replace(path.select(own).run(0), metadata={**path.metadata, "title": ""})
