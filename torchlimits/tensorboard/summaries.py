"""Summaries other than scalars: text, image, the layout of the custom scalars dashboard."""

# protobuf makes its classes at import time, where a type checker does not see them:
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.custom_scalar import layout_pb2 as layouts
from tensorboard.plugins.custom_scalar import metadata as layout_metadata
from tensorboard.plugins.text import metadata as text_metadata

#: how many charts the other dashboards put on one page
_MOST_OPEN = 12


def text(tag: str, markdown: str) -> Summary:
    """A panel of the text dashboard."""
    metadata = text_metadata.create_summary_metadata(display_name=None, description=None)
    tensor = TensorProto(dtype=DT_STRING, string_val=[markdown.encode()])
    return Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=tensor)])


def image(tag: str, png: bytes) -> Summary:
    """A panel of the image dashboard.

    >>> image("overlay", b"\\x89PNG\\r\\n\\x1a\\n" + bytes(8) + bytes([0, 0, 0, 3, 0, 0, 0, 2]))
    ... # doctest: +ELLIPSIS
    value {
      tag: "overlay"
      image {
        height: 2
        width: 3
        colorspace: 4...
    """
    # a PNG begins with 8 magic bytes, 8 bytes of chunk header, width, height
    width, height = struct.unpack(">II", png[16:24])
    picture = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
    return Summary(value=[Summary.Value(tag=tag, image=picture)])


def line_chart(title: str, tag: str) -> layouts.Chart:
    """A chart of one tag, by an anchored regular expression: v/1 alone would also match v/10."""
    pattern = f"^{re.escape(tag)}$"
    return layouts.Chart(title=title, multiline=layouts.MultilineChartContent(tag=[pattern]))


def band_chart(title: str, tag: str, lower: str, upper: str) -> layouts.Chart:
    """A chart of one tag in the band between two others; a run that lacks either is not drawn."""
    margin = layouts.MarginChartContent
    series = margin.Series(value=tag, lower=lower, upper=upper)
    return layouts.Chart(title=title, margin=margin(series=[series]))


def layout(categories: Mapping[str, Sequence[layouts.Chart]]) -> Summary:
    """The custom scalars dashboard: charts by category; later, large categories start closed.

    The charts of open categories load all at once.
    """
    parts = [
        layouts.Category(title=title, chart=charts, closed=i > 0 and len(charts) > _MOST_OPEN)
        for i, (title, charts) in enumerate(categories.items())
    ]
    whole = layouts.Layout(category=parts).SerializeToString()
    tensor = TensorProto(dtype=DT_STRING, string_val=[whole])
    tag, metadata = layout_metadata.CONFIG_SUMMARY_TAG, layout_metadata.create_summary_metadata()
    return Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=tensor)])
