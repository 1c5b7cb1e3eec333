"""TensorBoard's summary values, from plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tensorboard.compat.proto.summary_pb2 import (
    DATA_CLASS_BLOB_SEQUENCE,
    DATA_CLASS_SCALAR,
    DATA_CLASS_TENSOR,
    HistogramProto,
    Summary,
    SummaryMetadata,
)
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as custom_scalar
from tensorboard.plugins.histogram import metadata as histogram_plugin
from tensorboard.plugins.image import metadata as image_plugin
from tensorboard.plugins.scalar import metadata as scalar_plugin
from tensorboard.plugins.text import metadata as text_plugin

from sparsitywatch.records import LogHistogram

__all__ = ["histogram", "layout", "picture", "scalar", "text"]


def scalar(tag: str, value: float, description: str = "") -> Any:
    """One number; ``description`` is shown with the chart (Markdown)."""
    metadata = _metadata(scalar_plugin.PLUGIN_NAME, DATA_CLASS_SCALAR, description)
    return Summary.Value(tag=tag, simple_value=value, metadata=metadata)


def histogram(tag: str, value: LogHistogram, description: str = "") -> Any | None:
    """One histogram; None if it is empty.

    TensorBoard takes right edges of buckets, and the outermost left edge from ``min``.
    Empty buckets at the ends would give buckets with a negative width.
    """
    filled = np.flatnonzero(value.counts)
    if not filled.size:
        return None
    first, last = int(filled[0]), int(filled[-1])
    edges = np.asarray(value.edges, dtype=np.float64)[first : last + 2]
    counts = np.asarray(value.counts, dtype=np.float64)[first : last + 1]
    middles = (edges[:-1] + edges[1:]) / 2
    proto = HistogramProto(
        min=edges[0],
        max=edges[-1],
        num=counts.sum(),
        sum=counts @ middles,
        sum_squares=counts @ middles**2,
        bucket_limit=edges[1:].tolist(),
        bucket=counts.tolist(),
    )
    metadata = _metadata(histogram_plugin.PLUGIN_NAME, DATA_CLASS_TENSOR, description)
    return Summary.Value(tag=tag, histo=proto, metadata=metadata)


def picture(tag: str, png: bytes, size: tuple[int, int], description: str = "") -> Any:
    """One picture of ``size`` (width, height) in pixels, encoded as PNG."""
    width, height = size
    image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
    metadata = _metadata(image_plugin.PLUGIN_NAME, DATA_CLASS_BLOB_SEQUENCE, description)
    return Summary.Value(tag=tag, image=image, metadata=metadata)


def text(tag: str, markdown: str, description: str = "") -> Any:
    """One text, in Markdown."""
    metadata = text_plugin.create_summary_metadata(tag, description)
    return Summary.Value(tag=tag, metadata=metadata, tensor=_strings([markdown.encode()], [1]))


def layout(categories: Mapping[str, Mapping[str, tuple[str, Sequence[str]]]]) -> Any:
    """The page "Custom Scalars".

    Args:
        categories: charts by title, by title of their category. A chart is ("margin",
            [value, low, high]) with three tags, or ("lines", patterns) with regular
            expressions of tags.
    """
    proto = layout_pb2.Layout(
        category=[
            layout_pb2.Category(
                title=title, chart=[_chart(name, *chart) for name, chart in charts.items()]
            )
            for title, charts in categories.items()
        ]
    )
    return Summary.Value(
        tag=custom_scalar.CONFIG_SUMMARY_TAG,
        metadata=custom_scalar.create_summary_metadata(),
        tensor=_strings([proto.SerializeToString()], []),
    )


def _chart(title: str, kind: str, tags: Sequence[str]) -> Any:
    if kind == "margin":
        value, low, high = tags
        series = layout_pb2.MarginChartContent.Series(value=value, lower=low, upper=high)
        return layout_pb2.Chart(title=title, margin=layout_pb2.MarginChartContent(series=[series]))
    return layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=tags))


def _metadata(plugin: str, data_class: Any, description: str) -> Any:
    """Metadata; TensorBoard's default server drops the description without a data class."""
    return SummaryMetadata(
        plugin_data=SummaryMetadata.PluginData(plugin_name=plugin),
        data_class=data_class,
        summary_description=description,
    )


def _strings(values: Sequence[bytes], shape: Sequence[int]) -> Any:
    dimensions = [TensorShapeProto.Dim(size=size) for size in shape]
    return TensorProto(
        dtype="DT_STRING", string_val=values, tensor_shape=TensorShapeProto(dim=dimensions)
    )
