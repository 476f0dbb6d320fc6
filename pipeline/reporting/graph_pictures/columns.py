"""Columns of a picture of a graph: where the items of each row lie, placed by a linear program.

The program is that of Gansner et al., "A technique for drawing directed graphs" (1993). All lengths are in points; y
grows downwards.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_array

from pipeline.reporting.graph_pictures.rows import GraphRows, Item, Segment, carried_over

BOX_HEIGHT = 10.5
LAYER_GAP = 2.0  # between the nodes of a layer
ROW_GAP = 7.5
FORK_GAP = 5.0  # about how much more where edges part or meet
NODE_DISTANCE = 9.0
LINE_DISTANCE = 3.2  # from a line to a node or to another line
WIDTH_COST = 40.0  # per point of a column's width; an edge costs about 16 per point that it leads aside


class PlacedColumn(NamedTuple):
    """The rows from `first` to before `end`, and one more above and below for the lines that are carried over.

    Until it is moved, the column begins at x = 0, y = 0.

    Attributes:
        x: x of the items of each row.
        tops: y where each row begins.
        bottoms: y where each row ends.
        right: x of the right end of the column.
    """

    first: int
    end: int
    x: list[dict[Item, float]]
    tops: list[float]
    bottoms: list[float]
    right: float

    def moved(self, right: float, down: float) -> PlacedColumn:
        """Return the same column at another place."""
        return self._replace(
            x=[{item: right + x for item, x in xs.items()} for xs in self.x],
            tops=[down + y for y in self.tops],
            bottoms=[down + y for y in self.bottoms],
            right=right + self.right,
        )


def place_column(rows: GraphRows, first: int, end: int, widths: Sequence[float]) -> PlacedColumn:
    """Place the items of some rows as straight above each other as their order allows."""
    items = [carried_over(rows, first), *rows.items[first:end], carried_over(rows, end)]
    between = segments_of(rows, first, end)
    number = {key: i for i, key in enumerate((p, item) for p, row in enumerate(items) for item in row)}
    values, width = _positions(
        [_half_width(item, widths) for _, item in number],
        [
            (number[p, a], number[p, b], distance(a, b, widths))
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
    return PlacedColumn(first, end, x, tops, bottoms, width)


def segments_of(rows: GraphRows, first: int, end: int) -> list[list[Segment]]:
    """Return the segments between the rows of a column: first and last those of the lines that are carried over."""
    above = [(a if a < 0 else ~a, b) for a, b in rows.segments[first - 1]] if first else []
    here = rows.items[end - 1]
    below = [(line if line in here else ~line, line) for line in carried_over(rows, end)]
    return [above, *rows.segments[first : end - 1], below]


def distance(a: Item, b: Item, widths: Sequence[float]) -> float:
    """Return the smallest distance between the middles of neighbours in a row."""
    between = NODE_DISTANCE if min(a, b) >= 0 else LINE_DISTANCE
    return _half_width(a, widths) + between + _half_width(b, widths)


def row_width(row: Sequence[Item], widths: Sequence[float]) -> float:
    """Return the smallest width of a row."""
    distances = sum(distance(a, b, widths) for a, b in itertools.pairwise(row))
    return distances + _half_width(row[0], widths) + _half_width(row[-1], widths)


def _half_width(item: Item, widths: Sequence[float]) -> float:
    return widths[item] / 2 if item >= 0 else 0.0


def _pull(a: Item, b: Item, segments: Sequence[Segment], is_start: bool) -> float:
    """Return the cost per point that a segment leads aside: most where it is alone, least where lines begin and end."""
    if a < 0 and b < 0:
        return 16.0
    if a < 0 or is_start:
        return 1.0 / sum(b == v for _, v in segments)
    if b < 0:
        return 0.5
    return 16.0 if sum(a == u or b == v for u, v in segments) > 1 else 48.0


def _gap(above: dict[Item, float], below: dict[Item, float], segments: Sequence[Segment]) -> float:
    """Return the gap between two rows: wider if edges lead aside, because flat ones are hard to tell apart."""
    aside = max((abs(above[a] - below[b]) for a, b in segments), default=0.0)
    return ROW_GAP + FORK_GAP * min(2.5, 0.5 * math.ceil(aside / 25))


def _positions(
    halves: Sequence[float],
    distances: Sequence[tuple[int, int, float]],
    pulls: Sequence[tuple[int, int, float]],
) -> tuple[list[float], float]:
    """Return x of the items, and the width of all together, at the least cost.

    Args:
        halves: half the width of each item.
        distances: item, item and how far right of the first the second must be, at least.
        pulls: item, item and the cost per point by which their x differ.
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
