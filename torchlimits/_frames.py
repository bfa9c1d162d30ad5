"""Values along time as tables of pandas and arrays of xarray, which are loaded when asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas
    import xarray


@dataclass(frozen=True)
class Columns:
    """The arrays of a trajectory.

    Attributes:
        steps, times: shape ``(T,)``.
        values: shape ``(..., T, k)``.
        beside: what is known of each value, under ``"std"``, ``"lower"``, ``"upper"``, ``"error"``.
        names: of the k statistics.
        attrs: the metadata.
    """

    steps: np.ndarray
    times: np.ndarray
    values: np.ndarray
    beside: Mapping[str, np.ndarray]
    names: Sequence[str]
    attrs: Mapping[str, Any]


def to_pandas(path: Columns, wide: bool) -> pandas.DataFrame:
    """A row for each time and run, or for each value; see `Trajectory.to_pandas`."""
    import pandas

    names, T = list(path.names), len(path.times)
    runs = int(np.prod(path.values.shape[:-2], dtype=int))
    place = {"step": np.tile(path.steps, runs), "time": np.tile(path.times, runs)}
    if path.values.ndim > 2:
        place["run"] = np.repeat(np.arange(runs), T)
    shape = (runs * T, len(names))
    values = path.values.reshape(shape)
    beside = {name: entries.reshape(shape) for name, entries in path.beside.items()}
    if wide:
        parts = [pandas.DataFrame(place), pandas.DataFrame(values, columns=names)]
        for name, entries in beside.items():
            parts.append(pandas.DataFrame(entries, columns=names).add_suffix(f"/{name}"))
        return pandas.concat(parts, axis=1)
    return pandas.DataFrame(
        {
            **{key: np.tile(column, len(names)) for key, column in place.items()},
            "statistic": np.repeat(names, shape[0]),
            "value": values.T.ravel(),
            "std": np.nan,
            **{name: entries.T.ravel() for name, entries in beside.items()},
        }
    )


def to_xarray(path: Columns) -> xarray.Dataset:
    """Arrays with labelled axes; see `Trajectory.to_xarray`."""
    import xarray

    leading = [f"run_{i}" if i else "run" for i in range(path.values.ndim - 2)]
    dims = [*leading, "time", "statistic"]
    arrays = {"value": path.values, **path.beside}
    return xarray.Dataset(
        {name: (dims, array) for name, array in arrays.items()},
        coords={
            "time": path.times,
            "step": ("time", path.steps),
            "statistic": list(path.names),
        },
        attrs=dict(path.attrs),
    )
