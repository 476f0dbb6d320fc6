"""Pictures of computational graphs as matplotlib figures: a box for each node, read downwards and column by column.

The colour of a box is its primitive; its text is what the hypernetwork sees of the shape. All lengths are in points.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch, Rectangle
from matplotlib.path import Path as Outline

from ghn.networks.graph import Graph, Node
from pipeline.reporting.graph_pictures.columns import BOX_HEIGHT, LAYER_GAP
from pipeline.reporting.graph_pictures.layout import ARC_MARGIN, SMALLEST_WIDTH, GraphLayout, NodeBox, Point, lay_out
from pipeline.reporting.graph_pictures.texts import (
    DARK_PRIMITIVES,
    LABEL_SIZE,
    PRIMITIVE_COLORS,
    SWATCH_WIDTH,
    TEXT_SIZE,
    EdgesByDistance,
    LegendEntry,
    box_widths,
    counts_of,
    counts_of_virtual_edges,
    label,
    legend_of,
    readable_virtual_edges,
    text_width,
)
from pipeline.reporting.plots import INK, MUTED, STYLE, SURFACE

EDGE_COLOR = "#7a838e"
MODULE_BAR_COLOR = "#b9c0c8"
VIRTUAL_EDGE_COLOR = "#d0389a"

PAGE_MARGIN = 16.0
TITLE_SIZE = 12.0
MODULE_NAME_SIZE = 6.0
LINE_HEIGHT = 13.0
HEADER_HEIGHT = 70.0  # about the height of title and legend
ARROW_LENGTH = 2.6
CORNER_RADIUS = 5.0


@matplotlib.rc_context(STYLE)
def render_graph(graph: Graph, title: str, virtual_edges: bool = False, longest: int = 50) -> Figure:
    """Render the nodes and edges of a graph, with a title and a legend.

    Args:
        graph: the graph.
        title: the first line of the picture.
        virtual_edges: whether to add arcs for virtual edges, stronger for shorter ones. The shortest are shown, as many
            as leave the picture readable; the second subtitle tells how many.
        longest: the largest distance of a virtual edge, in edges.
    """
    layout = lay_out(graph, box_widths(graph), HEADER_HEIGHT, arcs=virtual_edges)
    arcs = readable_virtual_edges(graph, longest) if virtual_edges else {}
    notes = [counts_of(graph)]
    if virtual_edges:
        notes.append(counts_of_virtual_edges(graph, longest, arcs))
    widest_note = max(SWATCH_WIDTH + text_width(note, TEXT_SIZE) for note in notes)
    width = max(SMALLEST_WIDTH, layout.width, text_width(title, TITLE_SIZE, "bold"), widest_note)
    legend = legend_of(graph, width)
    head = TITLE_SIZE + LINE_HEIGHT * (len(notes) + 1 + legend[-1].line) + 2 * PAGE_MARGIN

    figure, axes = _canvas(width, head, layout.height)
    _render_head(axes, title, notes, legend, PAGE_MARGIN - head)
    _render_virtual_edges(axes, layout, arcs)
    _render_layout(axes, graph, layout)
    return figure


@matplotlib.rc_context(STYLE)
def render_bare_graph(graph: Graph) -> Figure:
    """Render the nodes and edges of a graph without title and legend, for a page that has its own."""
    layout = lay_out(graph, box_widths(graph), header=0)
    figure, axes = _canvas(layout.width, 0, layout.height)
    _render_layout(axes, graph, layout)
    return figure


def _canvas(width: float, head: float, height: float) -> tuple[Figure, Axes]:
    """Return a new figure and its axes, in points: y = 0 is the top of the graph, below a head that is `head` high."""
    width, height = width + 2 * PAGE_MARGIN, head + height + PAGE_MARGIN
    figure = Figure(figsize=(width / 72, height / 72))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(-PAGE_MARGIN, width - PAGE_MARGIN)
    axes.set_ylim(height - head, -head)
    return figure, axes


def _render_layout(axes: Axes, graph: Graph, layout: GraphLayout) -> None:
    _render_edges(axes, layout)
    for number, (node, box) in enumerate(zip(graph.nodes, layout.boxes, strict=True)):
        _render_node(axes, number, node, box)
    _render_module_labels(axes, layout)


def _render_head(axes: Axes, title: str, notes: Sequence[str], legend: Sequence[LegendEntry], top: float) -> None:
    _write(axes, 0, top + TITLE_SIZE, title, fontsize=TITLE_SIZE, fontweight="bold")
    y = top + TITLE_SIZE + LINE_HEIGHT + 2
    for number, note in enumerate(notes):
        if number:  # the note about virtual edges begins with a piece of an arc
            arc = Outline([(0, y - 3), (9, y - 3)])
            axes.add_artist(PathPatch(arc, fill=False, edgecolor=VIRTUAL_EDGE_COLOR, linewidth=1.2))
        _write(axes, SWATCH_WIDTH * number, y, note, fontsize=TEXT_SIZE, color=MUTED)
        y += LINE_HEIGHT
    y += 6
    for entry in legend:
        baseline = y + LINE_HEIGHT * entry.line
        swatch = Rectangle((entry.x, baseline - 7), 9, 8, facecolor=PRIMITIVE_COLORS[entry.primitive], linewidth=0)
        swatch.set_gid(f"legend-{entry.primitive}")
        axes.add_artist(swatch)
        _write(axes, entry.x + SWATCH_WIDTH, baseline, entry.text, fontsize=TEXT_SIZE, color=MUTED)


def _write(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    axes.text(x, y, text, parse_math=False, **{"va": "baseline", **style})


def _render_node(axes: Axes, number: int, node: Node, box: NodeBox) -> None:
    left = box.x - box.width / 2
    names = [f"{parameter.name} {'×'.join(map(str, parameter.shape))}" for parameter in node.parameters]
    patch = FancyBboxPatch(
        (left, box.y),
        box.width,
        BOX_HEIGHT,
        boxstyle="round,pad=0,rounding_size=2",
        facecolor=PRIMITIVE_COLORS[node.primitive],
        linewidth=0,
        zorder=5,
        gid=f"node-{number}",
        label="\n".join(names) or node.primitive,
        clip_on=False,
    )
    axes.add_artist(patch)
    color = SURFACE if node.primitive in DARK_PRIMITIVES else INK
    baseline = box.y + BOX_HEIGHT / 2 + 0.36 * LABEL_SIZE  # digits are in the middle
    _write(axes, box.x, baseline, label(node), ha="center", fontsize=LABEL_SIZE, color=color, zorder=6)


def _render_edges(axes: Axes, layout: GraphLayout) -> None:
    for source, strokes in layout.lines.items():
        _render_strokes(axes, strokes, f"line-{source}", color=EDGE_COLOR, linewidth=0.7, zorder=2)
    for (source, target), points in layout.links.items():
        _render_strokes(axes, [points], f"edge-{source}-{target}", color=EDGE_COLOR, linewidth=0.7, zorder=3)
    ends = {end for start, end in layout.links.values() if end[1] - start[1] > LAYER_GAP + 0.1}
    heads = [_arrow(x, y, 1) for x, y in sorted(ends)]
    for _, _, below, above, *_ in itertools.chain.from_iterable(layout.carried):
        heads.append(_arrow(below[0], (below[1] + above[1]) / 2, -1))
    if heads:
        outline = Outline.make_compound_path(*heads)
        axes.add_artist(PathPatch(outline, facecolor=EDGE_COLOR, linewidth=0, zorder=4, gid="arrows", clip_on=False))


def _arrow(x: float, y: float, direction: int) -> Outline:
    """Return a triangle whose tip is (x, y) and that points down (1) or up (-1)."""
    back = y - direction * 1.25 * ARROW_LENGTH
    return Outline([(x, y), (x - 0.6 * ARROW_LENGTH, back), (x + 0.6 * ARROW_LENGTH, back), (x, y)], closed=True)


def _render_virtual_edges(axes: Axes, layout: GraphLayout, arcs: EdgesByDistance) -> None:
    for distance, pairs in arcs.items():
        reach = 1.3 * ARC_MARGIN * (distance - 1) / max(2, max(arcs) - 1)
        strokes = [_arc(layout, layout.boxes[u], layout.boxes[v], reach) for u, v in pairs]
        outline = Outline.make_compound_path(*strokes)
        crowd = max(1.0, len(pairs) / (1.5 * len(layout.boxes)))
        style: dict[str, Any] = {"linewidth": 0.6, "alpha": 1 / (distance * crowd), "zorder": 1, "clip_on": False}
        patch = PathPatch(outline, fill=False, edgecolor=VIRTUAL_EDGE_COLOR, **style)
        patch.set_gid(f"virtual-{distance}")
        axes.add_artist(patch)


def _arc(layout: GraphLayout, source: NodeBox, target: NodeBox, reach: float) -> Outline:
    """Return an arc that leads left of the boxes, or from column to column along a line that is carried over."""
    start = (source.x - source.width / 2, source.y + BOX_HEIGHT / 2)
    end = (target.x - target.width / 2, target.y + BOX_HEIGHT / 2)
    if source.column == target.column:
        x = min(start[0], end[0]) - reach
        return Outline([start, (x, start[1]), (x, end[1]), end], [Outline.MOVETO] + 3 * [Outline.CURVE4])
    points: list[Point] = [start]
    for strokes in layout.carried[source.column : target.column]:
        distances = [abs(stroke[0][0] - points[-1][0]) for stroke in strokes]
        points += strokes[distances.index(min(distances))]
    return _outline([*points, end])


def _render_module_labels(axes: Axes, layout: GraphLayout) -> None:
    """Render a bar beside each module, with the longest end of its name that fits."""
    centred: dict[str, Any] = {"rotation": 90, "ha": "center", "va": "center"}
    for module in layout.modules:
        parts = module.name.split(".")
        names = [".".join(parts[first:]) for first in range(len(parts)) if not parts[first].isdecimal()]
        fitting = [name for name in names if text_width(name, MODULE_NAME_SIZE) < module.bottom - module.top]
        if fitting:
            bar = Outline([(module.x, module.top), (module.x, module.bottom)])
            axes.add_artist(PathPatch(bar, edgecolor=MODULE_BAR_COLOR, linewidth=1.2, fill=False, clip_on=False))
            _write(
                axes,
                module.x - 5,
                (module.top + module.bottom) / 2,
                fitting[0],
                fontsize=MODULE_NAME_SIZE,
                color=MUTED,
                **centred,
            )


def _render_strokes(axes: Axes, strokes: Iterable[Sequence[Point]], gid: str, **style: Any) -> None:
    outline = Outline.make_compound_path(*map(_outline, strokes))
    axes.add_artist(PathPatch(outline, fill=False, gid=gid, capstyle="butt", clip_on=False, **style))


def _outline(points: Sequence[Point]) -> Outline:
    """Return a path through the points: with round corners, and an S between points that are in no row or column."""
    slants = [_slant(a, b) for a, b in itertools.pairwise(points)]
    vertices, codes = [points[0]], [Outline.MOVETO]
    for i, ((x, y), end) in enumerate(itertools.pairwise(points)):
        if slants[i] == "/":
            middle = (y + end[1]) / 2
            vertices += [(x, middle), (end[0], middle), end]
            codes += 3 * [Outline.CURVE4]
        elif set(slants[i : i + 2]) == {"|", "-"}:
            vertices += [_towards(end, (x, y)), end, _towards(end, points[i + 2])]
            codes += [Outline.LINETO, Outline.CURVE3, Outline.CURVE3]
        else:
            vertices.append(end)
            codes.append(Outline.LINETO)
    return Outline(vertices, codes)


def _slant(a: Point, b: Point) -> str:
    return "|" if a[0] == b[0] else "-" if a[1] == b[1] else "/"


def _towards(a: Point, b: Point) -> Point:
    """Return the point where the rounding of corner `a` begins, on the way to its neighbour `b`."""
    length = math.dist(a, b)
    share = min(CORNER_RADIUS, length / 2) / length
    return a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1])
