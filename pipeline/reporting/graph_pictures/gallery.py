"""Pictures of small graphs, for a page."""

from __future__ import annotations

from collections.abc import Mapping

from ghn.networks.graph import Graph
from pipeline.reporting.graph_pictures.export import inline_svg
from pipeline.reporting.graph_pictures.render import render_bare_graph
from pipeline.reporting.graph_pictures.texts import PRIMITIVE_COLORS
from pipeline.reporting.numbers import short_count
from pipeline.reporting.page import GraphGallery, GraphPicture

GALLERY_SPLITS = ("train", "deep", "dense", "bn_free")
"""Splits with a picture of one graph. The graphs of the other splits look like those of train."""

SMALL_GRAPH = 100
"""Nodes: the picture shows the first graph with at most so many, or the smallest graph if there is none."""

CSS_PIXELS_PER_INCH = 96


def render_gallery(graphs: Mapping[str, Graph]) -> GraphGallery:
    """Render graphs by their names, `<split>/<index>`."""
    pictures = [_render_small_graph(name, graph) for name, graph in graphs.items()]
    shown = frozenset[str]().union(*(picture.primitives for picture in pictures))
    colors = {name: color for name, color in PRIMITIVE_COLORS.items() if name in shown}
    return GraphGallery(pictures, colors, SMALL_GRAPH)


def _render_small_graph(name: str, graph: Graph) -> GraphPicture:
    figure = render_bare_graph(graph)
    parameters = short_count(sum(parameter.size for parameter in graph.parameters))
    counts = f"{len(graph.nodes)} nodes, {len(graph.edges)} edges, {parameters} parameters"
    return GraphPicture(
        name=name,
        counts=counts,
        svg=inline_svg(figure, f"graph-{name.replace('/', '-')}", f"The graph of {name}: {counts}"),
        width=round(CSS_PIXELS_PER_INCH * figure.get_figwidth()),
        primitives=frozenset(graph.primitives),
    )
