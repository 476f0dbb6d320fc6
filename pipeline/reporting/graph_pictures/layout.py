"""Where the nodes and edges of a graph lie in a picture of it.

Networks are hundreds of rows deep. So the rows are broken into columns that are read from left to right, like those
of a newspaper, where few lines have to be carried over; then a linear program places what is in a column, as in
Gansner et al., "A technique for drawing directed graphs" (1993). All lengths are in points; y grows downwards.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_array

from ghn.networks.graph import Graph
from pipeline.reporting.graph_pictures.rows import Item, Rows, Segment, carried_over, rows_of

BOX_HEIGHT = 10.5
LAYER_GAP = 2.0  # between the nodes of a layer
ROW_GAP = 7.5
FORK_GAP = 5.0  # about how much more it is where edges part or meet
NODE_DISTANCE = 9.0
LINE_DISTANCE = 3.2  # from a line to a node or to another line
MARGIN = 9.0  # left of a column
BLOCK_MARGIN = 15.0  # more, for the names of blocks
ARC_MARGIN = 22.0  # more, for virtual edges
GUTTER = 7.0  # beside the lines that are carried over
SHORTEST_BLOCK = 3  # rows of a block that is named

ASPECT = 1.5  # width / height that is aimed at
SMALLEST_WIDTH = 380.0
WIDTH_COST = 40.0  # of a column, where the cost of an edge is about 16 for each point that it leads aside

Point = tuple[float, float]


class Box(NamedTuple):
    """A node's rectangle: the middle of its upper side, its width, and the column that it is in."""

    x: float
    y: float
    width: float
    column: int


class Block(NamedTuple):
    """A module whose nodes follow each other in a column, and where it is named."""

    name: str
    x: float
    top: float
    bottom: float


@dataclass(frozen=True)
class Layout:
    """`links` are the ends of the edges, from the source or its line to the target; `lines` are the lines, by source.

    A line is a list of strokes, a stroke a list of points. `carried` has the strokes from each column to the next,
    which are parts of lines too.
    """

    boxes: tuple[Box, ...]
    links: dict[tuple[int, int], list[Point]]
    lines: dict[int, list[list[Point]]]
    carried: tuple[list[list[Point]], ...]
    blocks: tuple[Block, ...]
    width: float
    height: float


class _Column(NamedTuple):
    """The rows from `first` to before `end`, and one more above and below, with the lines that are carried over: x of
    the items of each row, and where it begins and ends. The column begins at x = 0, y = 0 until it is moved."""

    first: int
    end: int
    x: list[dict[Item, float]]
    tops: list[float]
    bottoms: list[float]
    right: float

    def moved(self, right: float, down: float) -> _Column:
        return self._replace(
            x=[{item: right + x for item, x in xs.items()} for xs in self.x],
            tops=[down + y for y in self.tops],
            bottoms=[down + y for y in self.bottoms],
            right=right + self.right,
        )


def lay_out(graph: Graph, widths: Sequence[float], header: float, arcs: bool = False) -> Layout:
    """The positions of nodes that are `widths` wide, about in the proportions of a screen.

    Args:
        header: the height of what will be above, which counts for the proportions.
        arcs: whether to leave room for virtual edges on the left of the columns.
    """
    rows = rows_of(graph)
    margin = MARGIN + BLOCK_MARGIN * any(rows.blocks) + ARC_MARGIN * arcs
    aspects = {tuple(bounds): aspect for bounds, aspect in _breaks(rows, widths, margin, header)}
    nearest = sorted(aspects, key=lambda bounds: _off(aspects[bounds]))[:3]
    layouts = [_place(graph, rows, bounds, widths, margin) for bounds in nearest]
    return min(layouts, key=lambda layout: _off(max(SMALLEST_WIDTH, layout.width) / (layout.height + header)))


def _off(aspect: float) -> float:
    return abs(math.log(aspect / ASPECT))


def _breaks(rows: Rows, widths: Sequence[float], margin: float, header: float) -> Iterator[tuple[list[int], float]]:
    """Ways to break the rows into columns: where the columns begin and end, and about what the aspect will be."""
    heights = [BOX_HEIGHT + gap for gap in _estimated_gaps(rows)]
    row_widths = [_row_width(row, widths) for row in rows.items]
    carried = [len(carried_over(rows, r)) for r in range(1, len(rows.items))]
    costs = [
        5.0 * math.log2(max(1, lines)) + 9.0 * is_layer + 4.0 * (block == next_block)
        for lines, is_layer, (block, next_block) in zip(
            carried, rows.is_layer, itertools.pairwise(rows.blocks), strict=True
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
        if width > 2.5 * ASPECT * height:
            return


def _cheapest(heights: Sequence[float], costs: Sequence[float], height: float) -> list[int]:
    """Where columns of at most `height` begin and end that are well filled, and broken where it costs little."""
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


def _estimated_gaps(rows: Rows) -> list[float]:
    """How far each row is from the next, before it is known how far apart the items are."""
    gaps = []
    for segments, is_layer in zip(rows.segments, rows.is_layer, strict=True):
        of_nodes = [(a, b) for a, b in segments if max(a, b) >= 0]
        sources, targets = ({segment[end] for segment in of_nodes} for end in (0, 1))
        forks = min(len(sources), len(targets)) < len(of_nodes)
        gaps.append(LAYER_GAP if is_layer else ROW_GAP + FORK_GAP * forks)
    return [*gaps, ROW_GAP]


def _row_width(row: Sequence[Item], widths: Sequence[float]) -> float:
    distances = sum(_distance(a, b, widths) for a, b in itertools.pairwise(row))
    return distances + _half(row[0], widths) + _half(row[-1], widths)


def _distance(a: Item, b: Item, widths: Sequence[float]) -> float:
    """From middle to middle of neighbours in a row, at least."""
    between = NODE_DISTANCE if min(a, b) >= 0 else LINE_DISTANCE
    return _half(a, widths) + between + _half(b, widths)


def _half(item: Item, widths: Sequence[float]) -> float:
    return widths[item] / 2 if item >= 0 else 0.0


def _place(graph: Graph, rows: Rows, bounds: Sequence[int], widths: Sequence[float], margin: float) -> Layout:
    columns = [_column(rows, first, end, widths) for first, end in itertools.pairwise(bounds)]
    top = LINE_DISTANCE * max(len(column.x[0]) for column in columns)
    boxes: dict[int, Box] = {}
    links: dict[tuple[int, int], list[Point]] = {}
    lines: dict[int, list[list[Point]]] = {}
    carried: list[list[list[Point]]] = []
    blocks: list[Block] = []
    left = margin
    for number, column in enumerate(columns):
        columns[number] = column = column.moved(left, top)
        if number:
            carried.append(_carry(columns[number - 1], column))
            for item, stroke in zip(column.x[0], carried[-1], strict=True):
                lines[~item].append(stroke)
        for xs, y in zip(column.x, column.tops, strict=True):
            boxes.update((item, Box(x, y, widths[item], number)) for item, x in xs.items() if item >= 0)
        for p, segments in enumerate(_segments(rows, column.first, column.end)):
            for a, b in segments:
                start, end = (column.x[p][a], column.bottoms[p]), (column.x[p + 1][b], column.tops[p + 1])
                if b >= 0:
                    links[a if a >= 0 else ~a, b] = [start, end]
                else:
                    lines.setdefault(~b, []).append([start, end, (end[0], column.bottoms[p + 1])])
        blocks += _blocks(rows, column, left - margin + MARGIN + BLOCK_MARGIN / 2)
        left = column.right + 2 * GUTTER + LINE_DISTANCE * len(column.x[-1]) + margin
    return Layout(
        boxes=tuple(boxes[v] for v in range(len(graph.nodes))),
        links=links,
        lines={source: _joined(strokes) for source, strokes in lines.items()},
        carried=tuple(carried),
        blocks=tuple(blocks),
        width=columns[-1].right,
        height=max(column.bottoms[-1] + LINE_DISTANCE * len(column.x[-1]) for column in columns),
    )


def _carry(column: _Column, following: _Column) -> list[list[Point]]:
    """The strokes from the end of a column to the beginning of the next one, which never cross: they are nested."""
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


def _column(rows: Rows, first: int, end: int, widths: Sequence[float]) -> _Column:
    """Places items as straight above each other as their order allows: the edges lead aside as little as can be."""
    items = [carried_over(rows, first), *rows.items[first:end], carried_over(rows, end)]
    between = _segments(rows, first, end)
    number = {key: i for i, key in enumerate((p, item) for p, row in enumerate(items) for item in row)}
    values, width = _positions(
        [_half(item, widths) for _, item in number],
        [
            (number[p, a], number[p, b], _distance(a, b, widths))
            for p, row in enumerate(items)
            for a, b in itertools.pairwise(row)
        ],
        [
            (number[p, a], number[p + 1, b], _pull(a if p else ~a, b, segments, a in rows.starts))
            for p, segments in enumerate(between)
            for a, b in segments
        ],
    )
    x = [{item: values[number[p, item]] for item in row} for p, row in enumerate(items)]
    tops, bottoms = [0.0], [0.0]
    for p, segments in enumerate(between):
        gap = _gap(x[p], x[p + 1], segments)
        within = 0 < p < len(between) - 1
        if within and rows.is_layer[first + p - 1] and gap == ROW_GAP:
            gap = LAYER_GAP
        tops.append(bottoms[-1] + gap)
        bottoms.append(tops[-1] + BOX_HEIGHT * (p < len(between) - 1))
    return _Column(first, end, x, tops, bottoms, width)


def _segments(rows: Rows, first: int, end: int) -> list[list[Segment]]:
    """What leads from row to row in a column, in which each row has a number more; first and last what is carried."""
    above = [(a if a < 0 else ~a, b) for a, b in rows.segments[first - 1]] if first else []
    here = rows.items[end - 1]
    below = [(line if line in here else ~line, line) for line in carried_over(rows, end)]
    return [above, *rows.segments[first : end - 1], below]


def _pull(a: Item, b: Item, segments: Sequence[Segment], is_start: bool) -> float:
    """How much it costs if an edge leads aside: most where it is alone, least where lines begin and end."""
    if a < 0 and b < 0:
        return 16.0
    if a < 0 or is_start:
        return 1.0 / sum(b == v for _, v in segments)
    if b < 0:
        return 0.5
    return 16.0 if sum(a == u or b == v for u, v in segments) > 1 else 48.0


def _gap(above: dict[Item, float], below: dict[Item, float], segments: Sequence[Segment]) -> float:
    """Wider if edges lead aside: steep ones are told apart."""
    aside = max((abs(above[a] - below[b]) for a, b in segments), default=0.0)
    return ROW_GAP + FORK_GAP * min(2.5, 0.5 * math.ceil(aside / 25))


def _positions(
    halves: Sequence[float],
    distances: Sequence[tuple[int, int, float]],
    pulls: Sequence[tuple[int, int, float]],
) -> tuple[list[float], float]:
    """x of items that are twice `halves` wide, and the width of all together, at the least cost.

    Args:
        distances: item, item and by how much the second has to be further right.
        pulls: item, item and the cost of each point by which their x differ.
    """
    items = len(halves)
    width = items  # the variables are x, the width, and for each pull the absolute difference
    entries: list[tuple[int, int, float]] = []
    limits: list[float] = []

    def at_most(limit: float, *terms: tuple[int, float]) -> None:
        entries.extend((len(limits), variable, factor) for variable, factor in terms)
        limits.append(limit)

    for i, half in enumerate(halves):
        at_most(-half, (i, 1), (width, -1))
    for i, j, distance in distances:
        at_most(-distance, (i, 1), (j, -1))
    for number, (i, j, _) in enumerate(pulls):
        at_most(0, (i, 1), (j, -1), (width + 1 + number, -1))
        at_most(0, (i, -1), (j, 1), (width + 1 + number, -1))
    cost = [0.0] * items + [WIDTH_COST] + [pull for _, _, pull in pulls]
    bounds = [(half, None) for half in halves] + [(0, None)] * (1 + len(pulls))
    row, variable, factor = (np.array(values) for values in zip(*entries, strict=True))
    matrix = csr_array((factor, (row, variable)), shape=(len(limits), len(cost)))
    solution = linprog(cost, A_ub=matrix, b_ub=limits, bounds=bounds, method="highs")
    assert solution.status == 0, solution.message
    x = [round(value, 3) for value in solution.x.tolist()]
    return x[:items], x[width]


def _blocks(rows: Rows, column: _Column, x: float) -> list[Block]:
    blocks = []
    for name, members in itertools.groupby(range(column.first, column.end), key=rows.blocks.__getitem__):
        positions = [r - column.first + 1 for r in members]
        if name and len(positions) >= SHORTEST_BLOCK:
            blocks.append(Block(name, x, column.tops[positions[0]], column.bottoms[positions[-1]]))
    return blocks


def _joined(strokes: Sequence[list[Point]]) -> list[list[Point]]:
    """The same with fewer points: strokes that follow each other are one, and straight pieces have two points."""
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
