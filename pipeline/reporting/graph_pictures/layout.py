"""Layout of a picture of a graph: where its nodes and edges lie.

Networks are hundreds of rows deep. So the rows are broken into columns that are read from left to right, like those of
a newspaper. They are broken where few lines have to be carried over. All lengths are in points; y grows downwards.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ghn.networks.graph import Graph
from pipeline.reporting.graph_pictures.columns import (
    BOX_HEIGHT,
    FORK_GAP,
    LAYER_GAP,
    LINE_DISTANCE,
    ROW_GAP,
    PlacedColumn,
    place_column,
    row_width,
    segments_of,
)
from pipeline.reporting.graph_pictures.rows import GraphRows, carried_over, rows_of

COLUMN_MARGIN = 9.0  # left of a column
MODULE_MARGIN = 15.0  # additional, for the names of modules
ARC_MARGIN = 22.0  # additional, for virtual edges
GUTTER = 7.0  # beside the lines that are carried over
SHORTEST_MODULE = 3  # rows of a module that is named

ASPECT_RATIO = 1.5  # width / height of the whole picture, as far as possible
SMALLEST_WIDTH = 380.0

Point = tuple[float, float]


class NodeBox(NamedTuple):
    """A node's rectangle: the middle of its upper side, its width, and the number of its column."""

    x: float
    y: float
    width: float
    column: int


class ModuleLabel(NamedTuple):
    """A module whose nodes follow each other in a column, and where its name stands."""

    name: str
    x: float
    top: float
    bottom: float


@dataclass(frozen=True)
class GraphLayout:
    """Positions of all that a picture shows.

    A line is a list of strokes, a stroke a list of points.

    Attributes:
        boxes: the box of each node.
        links: the two ends of each edge (source, target), from the source or its line to the target.
        lines: the line of each source that has one.
        carried: the strokes from each column to the next, which are parts of lines too.
        modules: the names beside the columns.
        width, height: those of the graph, without a margin.
    """

    boxes: tuple[NodeBox, ...]
    links: dict[tuple[int, int], list[Point]]
    lines: dict[int, list[list[Point]]]
    carried: tuple[list[list[Point]], ...]
    modules: tuple[ModuleLabel, ...]
    width: float
    height: float


def lay_out(graph: Graph, widths: Sequence[float], header: float, arcs: bool = False) -> GraphLayout:
    """Return a layout with about the proportions of a screen.

    Args:
        graph: the graph.
        widths: the width of each node's box.
        header: the height of title and legend above the graph, which counts for the proportions.
        arcs: whether to leave room for virtual edges on the left of the columns.
    """
    rows = rows_of(graph)
    margin = COLUMN_MARGIN + MODULE_MARGIN * any(rows.modules) + ARC_MARGIN * arcs
    aspects = {tuple(bounds): aspect for bounds, aspect in _breaks(rows, widths, margin, header)}
    nearest = sorted(aspects, key=lambda bounds: _off(aspects[bounds]))[:3]
    layouts = [_place(graph, rows, bounds, widths, margin) for bounds in nearest]
    return min(layouts, key=lambda layout: _off(max(SMALLEST_WIDTH, layout.width) / (layout.height + header)))


def _off(aspect: float) -> float:
    """Return how far an aspect ratio is from the one aimed at."""
    return abs(math.log(aspect / ASPECT_RATIO))


def _breaks(
    rows: GraphRows, widths: Sequence[float], margin: float, header: float
) -> Iterator[tuple[list[int], float]]:
    """Yield ways to break the rows into columns: their bounds, and about which aspect ratio the picture gets."""
    heights = [BOX_HEIGHT + gap for gap in _estimated_gaps(rows)]
    row_widths = [row_width(row, widths) for row in rows.items]
    carried = [len(carried_over(rows, r)) for r in range(1, len(rows.items))]
    costs = [
        5.0 * math.log2(max(1, lines)) + 9.0 * is_layer + 4.0 * (module == next_module)
        for lines, is_layer, (module, next_module) in zip(
            carried, rows.is_layer, itertools.pairwise(rows.modules), strict=True
        )
    ]
    for number, slack in itertools.product(range(1, len(heights) + 1), (1.03, 1.1, 1.2)):
        bounds = _cheapest(heights, costs, max(slack * sum(heights) / number, *heights))
        lines = [carried[bound - 1] for bound in bounds[1:-1]]
        columns = list(itertools.pairwise(bounds))
        width = sum(max(row_widths[a:b]) + margin for a, b in columns)
        width += sum(2 * GUTTER + LINE_DISTANCE * count for count in lines)
        height = max(sum(heights[a:b]) for a, b in columns) + 2 * LINE_DISTANCE * max(lines, default=0)
        yield bounds, max(SMALLEST_WIDTH, width) / (height + header)
        if width > 2.5 * ASPECT_RATIO * height:
            return


def _cheapest(heights: Sequence[float], costs: Sequence[float], height: float) -> list[int]:
    """Return the bounds of columns of at most `height` that are well filled and broken where it costs little."""
    count = len(heights)
    least = [0.0] + [math.inf] * count
    begin = [0] * (count + 1)
    for end in range(1, count + 1):
        used = 0.0
        for first in reversed(range(end)):
            used += heights[first]
            if used > height:
                break
            empty = 1 - used / height
            cost = least[first] + (20 * empty**2 if end == count else 40 * empty**2 + 1 + costs[end - 1])
            if cost < least[end]:
                least[end], begin[end] = cost, first
    bounds = [count]
    while bounds[-1]:
        bounds.append(begin[bounds[-1]])
    return bounds[::-1]


def _estimated_gaps(rows: GraphRows) -> list[float]:
    """Return about how far each row will be from the next; the exact gaps depend on where the items lie."""
    gaps = []
    for segments, is_layer in zip(rows.segments, rows.is_layer, strict=True):
        of_nodes = [(a, b) for a, b in segments if max(a, b) >= 0]
        sources, targets = ({segment[end] for segment in of_nodes} for end in (0, 1))
        forks = min(len(sources), len(targets)) < len(of_nodes)
        gaps.append(LAYER_GAP if is_layer else ROW_GAP + FORK_GAP * forks)
    return [*gaps, ROW_GAP]


def _place(graph: Graph, rows: GraphRows, bounds: Sequence[int], widths: Sequence[float], margin: float) -> GraphLayout:
    """Return the layout with columns that begin and end at `bounds`."""
    columns = [place_column(rows, first, end, widths) for first, end in itertools.pairwise(bounds)]
    top = LINE_DISTANCE * max(len(column.x[0]) for column in columns)
    boxes: dict[int, NodeBox] = {}
    links: dict[tuple[int, int], list[Point]] = {}
    lines: dict[int, list[list[Point]]] = {}
    carried: list[list[list[Point]]] = []
    modules: list[ModuleLabel] = []
    left = margin
    for number, column in enumerate(columns):
        columns[number] = column = column.moved(left, top)
        if number:
            carried.append(_carry(columns[number - 1], column))
            for item, stroke in zip(column.x[0], carried[-1], strict=True):
                lines[~item].append(stroke)
        for xs, y in zip(column.x, column.tops, strict=True):
            boxes.update((item, NodeBox(x, y, widths[item], number)) for item, x in xs.items() if item >= 0)
        for p, segments in enumerate(segments_of(rows, column.first, column.end)):
            for a, b in segments:
                start, end = (column.x[p][a], column.bottoms[p]), (column.x[p + 1][b], column.tops[p + 1])
                if b >= 0:
                    links[a if a >= 0 else ~a, b] = [start, end]
                else:
                    lines.setdefault(~b, []).append([start, end, (end[0], column.bottoms[p + 1])])
        modules += _module_labels(rows, column, left - margin + COLUMN_MARGIN + MODULE_MARGIN / 2)
        left = column.right + 2 * GUTTER + LINE_DISTANCE * len(column.x[-1]) + margin
    return GraphLayout(
        boxes=tuple(boxes[v] for v in range(len(graph.nodes))),
        links=links,
        lines={source: _joined(strokes) for source, strokes in lines.items()},
        carried=tuple(carried),
        modules=tuple(modules),
        width=columns[-1].right,
        height=max(column.bottoms[-1] + LINE_DISTANCE * len(column.x[-1]) for column in columns),
    )


def _carry(column: PlacedColumn, following: PlacedColumn) -> list[list[Point]]:
    """Return the strokes from the end of a column to the beginning of the next one. They are nested: none cross."""
    strokes = []
    bottom, top = column.bottoms[-1], following.tops[0]
    count = len(following.x[0])
    for i, (x, x_next) in enumerate(zip(column.x[-1].values(), following.x[0].values(), strict=True)):
        lowest = bottom + LINE_DISTANCE * (count - i)
        gutter = column.right + GUTTER + LINE_DISTANCE * (count - 1 - i)
        highest = top - LINE_DISTANCE * (i + 1)
        turns = [(x, lowest), (gutter, lowest), (gutter, highest), (x_next, highest)]
        strokes.append([(x, bottom), *turns, (x_next, top)])
    return strokes


def _module_labels(rows: GraphRows, column: PlacedColumn, x: float) -> list[ModuleLabel]:
    labels = []
    for name, members in itertools.groupby(range(column.first, column.end), key=rows.modules.__getitem__):
        positions = [r - column.first + 1 for r in members]
        if name and len(positions) >= SHORTEST_MODULE:
            labels.append(ModuleLabel(name, x, column.tops[positions[0]], column.bottoms[positions[-1]]))
    return labels


def _joined(strokes: Sequence[list[Point]]) -> list[list[Point]]:
    """Return the same line with fewer points: one stroke for strokes that meet, two points for a straight piece."""
    joined: list[list[Point]] = []
    for stroke in strokes:
        if joined and joined[-1][-1] == stroke[0]:
            joined[-1] = joined[-1] + stroke[1:]
        else:
            joined.append(stroke)
    return [_without_middles(stroke) for stroke in joined]


def _without_middles(points: Sequence[Point]) -> list[Point]:
    kept = [points[0]]
    for point, after in itertools.pairwise(points[1:]):
        if not kept[-1][0] == point[0] == after[0]:
            kept.append(point)
    return [*kept, points[-1]]
