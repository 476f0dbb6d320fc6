"""Texts of a picture of a graph: labels of boxes, counts, the legend, and how wide they are. Lengths are in points."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from ghn.networks.graph import Graph, Node
from pipeline.reporting.numbers import count, short_count

PRIMITIVE_COLORS = {
    "input": "#3b434d",
    "conv": "#a9cdf2",
    "sep_conv": "#6fa8e3",
    "dil_conv": "#8fd0d8",
    "bias": "#efe7c8",
    "bn": "#d3e8c6",
    "ln": "#a6d3a0",
    "max_pool": "#f3b071",
    "avg_pool": "#f9d3a4",
    "glob_avg": "#e38b4a",
    "sum": "#cf4a45",
    "concat": "#8c3a6b",
    "msa": "#7b5cc4",
    "cse": "#c4aaf0",
    "pos_enc": "#efb8d8",
}
"""Related primitives have related hues: convolutions blue, norms green, pools orange, attention violet."""

DARK_PRIMITIVES = ("input", "sum", "concat", "msa")
"""Primitives whose text is light."""

LABEL_SIZE = 6.5
TEXT_SIZE = 8.5
BOX_PADDING = 4.0  # on both sides of the text in a box
SWATCH_WIDTH = 13.0  # the width of a colour in the legend, with the distance to its text

VIRTUAL_EDGES_PER_NODE = 3.5
"""A picture with more arcs would hide the graph, so the longest are left out."""

EdgesByDistance = Mapping[int, Sequence[tuple[int, int]]]
"""Virtual edges (from, to) by their distance in edges."""


class LegendEntry(NamedTuple):
    """A primitive of the graph, with its place in the legend: the line, counted from 0, and x."""

    primitive: str
    text: str
    x: float
    line: int


@lru_cache(maxsize=4096)
def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Return the width of a text in points."""
    font = FontProperties(size=size, weight=weight)
    width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return float(width)


def label(node: Node) -> str:
    """Return the primitive and what matters of its shape: `conv 3×3, 64→128`, `sep_conv 5×5, 96`, `bn 64`."""
    if node.shape is None:
        return node.primitive
    channels, inputs, height, width = node.shape
    if node.primitive in ("max_pool", "avg_pool"):
        return f"{node.primitive} {height}×{width}"
    if node.primitive == "conv":
        return f"conv {height}×{width}, {inputs}→{channels}"
    if node.primitive in ("sep_conv", "dil_conv"):
        of_group = f"{inputs}→" if inputs > 1 else ""
        return f"{node.primitive} {height}×{width}, {of_group}{channels}"
    sizes = [size for size in node.shape if size > 1]
    return f"{node.primitive} {'×'.join(map(str, sizes or [1]))}"


def box_widths(graph: Graph) -> list[float]:
    """Return the width of each node's box: one width for boxes with a shape, one for the others.

    Two widths only, so that the boxes of a column are flush.
    """
    widest = {True: 0.0, False: 0.0}
    for node in graph.nodes:
        has_shape = node.shape is not None
        widest[has_shape] = max(widest[has_shape], text_width(label(node), LABEL_SIZE) + 2 * BOX_PADDING)
    return [widest[node.shape is not None] for node in graph.nodes]


def counts_of(graph: Graph) -> str:
    """Return the numbers of nodes, edges and parameters, and of tensors that are not predicted, in words."""
    parameters = short_count(sum(parameter.size for parameter in graph.parameters))
    parts = [count(len(graph.nodes), "node"), count(len(graph.edges), "edge"), f"{parameters} parameters"]
    if graph.not_predicted:
        parts.append(f"{count(len(graph.not_predicted), 'tensor')} not predicted")
    return " · ".join(parts)


def legend_of(graph: Graph, width: float) -> list[LegendEntry]:
    """Return an entry for each primitive of the graph, in lines of at most `width` points."""
    counts = Counter(graph.primitives)
    entries = []
    x, line = 0.0, 0
    for primitive in filter(counts.get, PRIMITIVE_COLORS):
        text = f"{primitive} {counts[primitive]:,}"
        end = x + SWATCH_WIDTH + text_width(text, TEXT_SIZE)
        if x and end > width:
            x, line, end = 0.0, line + 1, end - x
        entries.append(LegendEntry(primitive, text, x, line))
        x = end + SWATCH_WIDTH
    return entries


def readable_virtual_edges(graph: Graph, longest: int) -> dict[int, list[tuple[int, int]]]:
    """Return the virtual edges to show, by distance: the shortest, all or none of a distance, and always distance 2."""
    sources, targets, distances = graph.virtual_edges(longest)
    most = VIRTUAL_EDGES_PER_NODE * len(graph.nodes)
    edges: dict[int, list[tuple[int, int]]] = {}
    shown = 0
    for distance in range(2, longest + 1):
        of_distance = np.flatnonzero(distances == distance)
        shown += len(of_distance)
        if not len(of_distance) or (edges and shown > most):
            break
        edges[distance] = list(zip(sources[of_distance].tolist(), targets[of_distance].tolist(), strict=True))
    return edges


def counts_of_virtual_edges(graph: Graph, longest: int, shown: EdgesByDistance) -> str:
    """Return how many virtual edges the graph has up to distance `longest`, and how many of them are shown."""
    _, _, distances = graph.virtual_edges(longest)
    number, number_shown = int((distances > 1).sum()), sum(map(len, shown.values()))
    text = f"{count(number, 'virtual edge')} at distances 2 to {longest}"
    if number_shown == number:
        return text
    farthest = max(shown)
    return f"{text}; shown are {number_shown:,}, at {f'distances 2 to {farthest}' if farthest > 2 else 'distance 2'}"
