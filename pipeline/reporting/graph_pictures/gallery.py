"""Pictures of small graphs of a set of architectures, for a page."""

from __future__ import annotations

import numpy as np

from pipeline.architectures.store import ArchitectureStore, Split
from pipeline.reporting.graph_pictures.export import inline_svg
from pipeline.reporting.graph_pictures.render import render_bare_graph
from pipeline.reporting.graph_pictures.texts import PRIMITIVE_COLORS
from pipeline.reporting.numbers import short_count
from pipeline.reporting.page import GraphGallery, GraphPicture

GALLERY_SPLITS = ("train", "deep", "dense", "bn_free")
"""Splits with a picture of one graph. The graphs of the other splits look like those of train."""

SMALL_GRAPH = 100
"""Nodes: the picture shows the first graph with at most so many, or the smallest graph if there is none."""

LARGEST_GRAPH = 300
"""Nodes: a split whose smallest graph has more gets no picture, because the page would be slow to load."""

CSS_PIXELS_PER_INCH = 96


def render_small_graphs(store: ArchitectureStore) -> GraphGallery:
    """Render a graph for each of `GALLERY_SPLITS` that has one of at most `LARGEST_GRAPH` nodes."""
    chosen = {split: _index_of_small_graph(store[split]) for split in GALLERY_SPLITS}
    pictures = [_render_small_graph(store[split], index) for split, index in chosen.items() if index is not None]
    shown = frozenset[str]().union(*(picture.primitives for picture in pictures))
    colors = {name: color for name, color in PRIMITIVE_COLORS.items() if name in shown}
    return GraphGallery(pictures, colors, SMALL_GRAPH)


def _index_of_small_graph(split: Split) -> int | None:
    nodes = split.columns("nodes")["nodes"]
    small = np.flatnonzero(nodes <= SMALL_GRAPH)
    index = int(small[0]) if len(small) else int(nodes.argmin())
    return index if nodes[index] <= LARGEST_GRAPH else None


def _render_small_graph(split: Split, index: int) -> GraphPicture:
    graph = split.read(index).graph(32, 10)
    figure = render_bare_graph(graph)
    name = f"{split.name}/{index}"
    parameters = short_count(sum(parameter.size for parameter in graph.parameters))
    counts = f"{len(graph.nodes)} nodes, {len(graph.edges)} edges, {parameters} parameters"
    return GraphPicture(
        name=name,
        counts=counts,
        svg=inline_svg(figure, f"graph-{split.name}", f"The graph of {name}: {counts}"),
        width=round(CSS_PIXELS_PER_INCH * figure.get_figwidth()),
        primitives=frozenset(graph.primitives),
    )
