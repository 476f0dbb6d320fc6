"""Small graphs of a set of architectures, drawn for a page."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.architectures.store import ArchitectureStore, Split
from pipeline.reporting.graph_pictures.plot import inline_svg, render_bare_graph
from pipeline.reporting.plots import short_count

SPLITS = ("train", "deep", "dense", "bn_free")
"""Splits of which a graph is drawn; the others have graphs like those of train."""

SMALL = 100
"""Nodes: the first graph that has no more is drawn, or else the smallest."""

MOST = 300
"""Nodes: of a split that has no smaller graph, none is drawn, or the page would be heavy."""


@dataclass(frozen=True)
class Picture:
    """A drawn graph: its name (`deep/7`), its counts in words, its `<svg>` and the width of that in pixels."""

    name: str
    counts: str
    svg: str
    width: int
    primitives: frozenset[str]


def small_graphs(store: ArchitectureStore) -> list[Picture]:
    """A picture for each of `SPLITS` that has a graph that is small enough."""
    chosen = {split: _small_one(store[split]) for split in SPLITS}
    return [_picture(store[split], index) for split, index in chosen.items() if index is not None]


def _small_one(split: Split) -> int | None:
    nodes = split.columns("nodes")["nodes"]
    small = np.flatnonzero(nodes <= SMALL)
    index = int(small[0]) if len(small) else int(nodes.argmin())
    return index if nodes[index] <= MOST else None


def _picture(split: Split, index: int) -> Picture:
    graph = split.read(index).graph(32, 10)
    figure = render_bare_graph(graph)
    name = f"{split.name}/{index}"
    parameters = short_count(sum(parameter.size for parameter in graph.parameters))
    counts = f"{len(graph.nodes)} nodes, {len(graph.edges)} edges, {parameters} parameters"
    return Picture(
        name=name,
        counts=counts,
        svg=inline_svg(figure, f"graph-{split.name}", f"The graph of {name}: {counts}"),
        width=round(96 * figure.get_figwidth()),  # 96 CSS pixels an inch
        primitives=frozenset(graph.primitives),
    )
