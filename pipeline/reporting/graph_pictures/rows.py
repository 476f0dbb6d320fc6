"""Rows of a picture of a graph: which nodes and lines are in each, and in which order.

A row holds the nodes of one level. Beside them it holds a *line* for every node above that has an edge to a node below.
All edges of a node share its line: in a DenseNet, dozens of edges become one. Levels and barycentres are from Sugiyama,
Tagawa and Toda, "Methods for visual understanding of hierarchical system structures" (1981). Why no library does this:
docs/decisions/0006-graph-layout.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ghn.networks.graph import Graph

SWEEPS = 12  # over all rows, down and up in turn
ROWS_PER_MODULE = 3.5
"""A division into modules is too fine if they have fewer rows on average."""

Item = int
"""An item of a row: node v is v, the line of node u is ~u."""

Segment = tuple[Item, Item]
"""A part of an edge, from an item of a row to an item of the next row."""


@dataclass(frozen=True)
class GraphRows:
    """The rows of a graph, from top to bottom.

    Attributes:
        items: those of each row, from left to right.
        segments: those from each row to the next.
        is_layer: for each row but the last, whether all segments to the next one are within a layer (a weight, its bias
            and its norm).
        modules: the name of the module of each row, or an empty name.
        starts: the nodes without incoming edges.
    """

    items: list[list[Item]]
    segments: list[list[Segment]]
    is_layer: list[bool]
    modules: list[str]
    starts: frozenset[int]


def rows_of(graph: Graph) -> GraphRows:
    """Return the rows of a graph, each in an order in which few edges cross."""
    targets: list[list[int]] = [[] for _ in graph.nodes]
    for u, v in graph.edges:
        targets[u].append(v)
    row = graph.levels.tolist()
    starts = frozenset(v for v, sources in enumerate(graph.sources) if not sources)
    for v in starts:
        if targets[v]:  # the position encoding of a late block belongs above its sum, not beside the input
            row[v] = min(row[w] for w in targets[v]) - 1
    count = max(row) + 1
    items: list[list[Item]] = [[] for _ in range(count)]
    segments: list[list[Segment]] = [[] for _ in range(count - 1)]
    for v in range(len(graph.nodes)):
        items[row[v]].append(v)
    for u in reversed(range(len(graph.nodes))):  # the line of a later node is closer to the nodes
        last = max((row[v] for v in targets[u]), default=0)
        for r in range(row[u] + 1, last):
            items[r].append(~u)
            segments[r - 1].append((u if r == row[u] + 1 else ~u, ~u))
        for v in targets[u]:
            segments[row[v] - 1].append((u if row[u] == row[v] - 1 else ~u, v))

    def is_layer(a: Item, b: Item) -> bool:
        follows = graph.nodes[b].primitive in ("bias", "bn", "ln") and len(graph.sources[b]) == 1
        return follows and a >= 0 and len(targets[a]) == 1 and bool(graph.nodes[a].parameters)

    layers = []
    for between in segments:
        to_nodes = [(a, b) for a, b in between if b >= 0]
        layers.append(all(is_layer(a, b) for a, b in to_nodes))
    return _ordered(GraphRows(items, segments, layers, _module_names(graph, row, count), starts))


def carried_over(rows: GraphRows, first: int) -> list[Item]:
    """Return the lines that lead into row `first` from the rows above, from left to right."""
    if not 0 < first < len(rows.items):
        return []
    sources = {a for a, _ in rows.segments[first - 1]}
    return [item if item < 0 else ~item for item in rows.items[first - 1] if item in sources]


def _module_names(graph: Graph, row: Sequence[int], count: int) -> list[str]:
    """Return for each row the first module that is not complete, in the finest division that follows the rows.

    A row without parameters belongs to the module before it. Without such a division, all names are empty.
    """
    modules: dict[int, list[str]] = {}
    first = [len(graph.nodes)] * count
    for v, node in enumerate(graph.nodes):
        if node.parameters and graph.sources[v]:
            path = node.parameters[0].name.split(".")[:-1]
            modules[v] = [part for part in path if not part.startswith("_")]
            first[row[v]] = min(first[row[v]], v)
    if not modules:
        return [""] * count
    incomplete = list(itertools.accumulate(reversed(first), min))[::-1]
    latest = min(modules)
    of_rows = [latest := i if v in modules else latest for v, i in zip(first, incomplete, strict=True)]

    best, runs = [""] * count, 1
    for depth in range(1, max(map(len, modules.values())) + 1):
        names = [".".join(modules[v][:depth]) for v in of_rows]
        number = 1 + sum(a != b for a, b in itertools.pairwise(names))
        different = len({tuple(module[:depth]) for module in modules.values()})
        # A division that is hardly finer is only a longer name for the same.
        if abs(number - different) <= 0.2 * number and 1.25 * runs < number < count / ROWS_PER_MODULE:
            best, runs = names, number
    return best


def _ordered(rows: GraphRows) -> GraphRows:
    """Sort each row by the barycentres of its neighbours, above and below in turn, and return the best order found."""
    items = best = rows.items
    fewest = _crossings(items, rows.segments)
    for sweep in range(SWEEPS):
        if fewest == 0:
            break
        items = _swept(items, rows.segments, down=sweep % 2 == 0)
        crossings = _crossings(items, rows.segments)
        if crossings < fewest:
            best, fewest = items, crossings
    return replace(rows, items=best)


def _swept(items: list[list[Item]], segments: list[list[Segment]], down: bool) -> list[list[Item]]:
    """Return the items with each row sorted by the barycentres of the row above (`down`) or below."""
    items = list(items)
    for r in range(1, len(items)) if down else reversed(range(len(items) - 1)):
        position = {item: p for p, item in enumerate(items[r - 1 if down else r + 1])}
        neighbours: dict[Item, list[Item]] = {item: [] for item in items[r]}
        for a, b in segments[r - 1 if down else r]:
            neighbours[b if down else a].append(a if down else b)
        barycentre: dict[Item, float] = {}
        for p, (item, near) in enumerate(neighbours.items()):
            # Nodes count first: else those of a DenseNet would move into the middle of their lines.
            near = [other for other in near if other >= 0] or near
            barycentre[item] = sum(position[other] for other in near) / len(near) if near else p
        items[r] = sorted(items[r], key=barycentre.__getitem__)
    return items


def _crossings(items: list[list[Item]], segments: list[list[Segment]]) -> int:
    """Return how often edges cross. A line that ends across other lines does not count, because that reads well."""
    total = 0
    for (above, below), between in zip(itertools.pairwise(items), segments, strict=True):
        if len(between) < 2:
            continue
        upper, lower = ({item: p for p, item in enumerate(row)} for row in (above, below))
        a = np.array([upper[a] for a, _ in between])
        b = np.array([lower[b] for _, b in between])
        ends = np.array([a < 0 <= b for a, b in between])
        passes = np.array([a < 0 and b < 0 for a, b in between])
        crosses = (np.subtract.outer(a, a) < 0) & (np.subtract.outer(b, b) > 0)
        harmless = np.logical_and.outer(ends, passes)
        total += int((crosses & ~(harmless | harmless.T)).sum())
    return total
