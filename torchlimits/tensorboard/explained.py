"""`write_explanation`: what drift and corrector explain, as four runs with the same tags."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from torchlimits.contracts.explanation import PARTS, Explanation
from torchlimits.tensorboard import events
from torchlimits.tensorboard.tags import (
    all_tags,
    columns_of,
    experiment_of,
    layout_of,
    log_folder,
    wall_times_of,
)


def write_explanation(logdir: str | Path, explanation: Explanation) -> None:
    """Write what `Writer.explain` shows, under tags ``explained/<statistic>``, into a folder.

    Raises:
        OSError: if ``logdir`` is a file or cannot be written to.
        TypeError: if ``explanation`` is not an `Explanation`.
    """
    if not isinstance(explanation, Explanation):
        raise TypeError(
            f"expected the explanation of a tracker, got {type(explanation).__name__}: give "
            "tracker.explanation()"
        )
    folder, now = log_folder(logdir) / "explained", time.time()
    experiment = experiment_of(Path(logdir))
    places = {name: folder / title for name, title in PARTS.items()}
    old = [file for place in places.values() for file in events.own_files(place)]
    files = []
    for name, path in explanation.parts().items():
        named = replace(path, names=[f"explained/{n}" for n in path.names])
        file = events.EventFile(
            events.room(places[name], places[name]), root=places[name], partial=True
        )
        wall_times = wall_times_of(path, now)
        (columns,) = columns_of(named, band=True)
        tags = all_tags(named.names, experiment, band=True)
        file.add_scalars(tags, path.steps.numpy(), wall_times, columns)
        file.add(layout_of(named.names, experiment, band=True), wall_time=now)
        files.append(file)
    for file in files:
        file.publish()
    events.retire(old)
