"""A picture of a computational graph: a box for each node, to be read downwards and column after column.

The colour of a box is its primitive, its text what the hypernetwork sees of the shape. In an SVG, text is text, and a
box that the mouse points at shows the names of its parameters. All lengths are in points.
"""

from __future__ import annotations

import io
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyBboxPatch, PathPatch, Rectangle
from matplotlib.path import Path as Outline
from matplotlib.textpath import text_to_path

from ghn.networks.graph import Graph, Node
from pipeline.reporting import plots
from pipeline.reporting.graph_pictures.layout import (
    ARC_MARGIN,
    BOX_HEIGHT,
    LAYER_GAP,
    SMALLEST_WIDTH,
    Box,
    Layout,
    Point,
    lay_out,
)
from pipeline.reporting.plots import INK, MUTED, STYLE, SURFACE, short_count

COLORS = {
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

DARK = ("input", "sum", "concat", "msa")
"""Primitives whose text is light."""

EDGE = "#7a838e"
BLOCK = "#b9c0c8"
VIRTUAL = "#d0389a"
VIRTUAL_EDGES_PER_NODE = 3.5
"""More of them would hide the graph: the longest are left out."""

PAGE_MARGIN = 16.0
TITLE_SIZE = 12.0
TEXT_SIZE = 8.5
LABEL_SIZE = 6.5
BLOCK_SIZE = 6.0
LINE_HEIGHT = 13.0
SWATCH = 13.0  # the width of a colour in the legend, with the distance to its text
HEADER = 70.0  # about the height of title and legend
PADDING = 4.0  # beside the text in a box
ARROW = 2.6
CORNER = 5.0

Arcs = dict[int, list[tuple[int, int]]]
"""Virtual edges (from, to) by their distance."""


PICTURE_SUFFIXES = (".svg", ".png", ".pdf")
"""What a picture can be saved as, by the end of its file's name."""


@matplotlib.rc_context(STYLE)
def render_graph(graph: Graph, title: str, virtual_edges: bool = False, longest: int = 50) -> Figure:
    """The nodes and edges of a graph; if asked, with arcs for its virtual edges, the shorter the stronger.

    Of the virtual edges, those at distances from 2 to `longest`, only the shortest are shown: so many that the
    picture stays readable. The second subtitle tells how many.
    """
    layout = lay_out(graph, _widths(graph), HEADER, arcs=virtual_edges)
    arcs = _arcs(graph, longest) if virtual_edges else {}
    notes = [_counts(graph)]
    if virtual_edges:
        notes.append(_counts_of_virtual_edges(graph, longest, arcs))
    widest_text = max(_text_width(title, TITLE_SIZE, "bold"), *(SWATCH + _text_width(n, TEXT_SIZE) for n in notes))
    content = max(SMALLEST_WIDTH, layout.width, widest_text)
    legend = _legend(graph, content)
    head = TITLE_SIZE + LINE_HEIGHT * (len(notes) + 1 + legend[-1].line) + 2 * PAGE_MARGIN

    axes = _canvas(content, head, layout.height)
    _draw_head(axes, title, notes, legend, PAGE_MARGIN - head)
    _draw_arcs(axes, layout, arcs)
    _draw_layout(axes, graph, layout)
    return axes.get_figure()


@matplotlib.rc_context(STYLE)
def render_bare_graph(graph: Graph) -> Figure:
    """The nodes and edges of a graph without title and legend: for a page that has its own."""
    layout = lay_out(graph, _widths(graph), header=0)
    axes = _canvas(layout.width, 0, layout.height)
    _draw_layout(axes, graph, layout)
    return axes.get_figure()


def save(figure: Figure, file: Path) -> None:
    """Writes a figure of `render_graph`, in the same bytes each time.

    Raises:
        ValueError: the file's name ends in neither .svg nor .png nor .pdf.
    """
    kind = file.suffix.lower()
    if kind not in PICTURE_SUFFIXES:
        raise ValueError(f"{file.name} is not the name of a picture: must end in {', '.join(PICTURE_SUFFIXES)}")
    if kind == ".svg":
        file.write_text(svg(figure), encoding="utf-8")
    else:
        figure.savefig(file, dpi=200, metadata={"Software" if kind == ".png" else "CreationDate": None})


def svg(figure: Figure) -> str:
    """A page of its own, in which each node has a tooltip."""
    buffer = io.StringIO()
    style = {**STYLE, "svg.hashsalt": "graph"}  # the same identifiers in every run
    with matplotlib.rc_context(style):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date")))
    return _with_tips(figure, buffer.getvalue())


def inline_svg(figure: Figure, name: str, description: str) -> str:
    """An `<svg>` element for a page (see `pipeline.reporting.plots.inline_svg`), in which each node has a tooltip.

    Boxes keep their colours, and the ink of the text in them, in dark pages.
    """
    return _with_tips(figure, plots.inline_svg(figure, name, description, {MUTED: "muted"}))


def _with_tips(figure: Figure, text: str) -> str:
    tips = {patch.get_gid(): patch.get_label() for axes in figure.axes for patch in axes.patches}

    def with_tip(found: re.Match[str]) -> str:
        tip = tips.get(found[1], "")
        return f"{found[0]}<title>{escape(tip, quote=False)}</title>" if tip else found[0]

    return re.sub(r'<g id="(?:[^"]+-)?(node-\d+)">', with_tip, text)


def label(node: Node) -> str:
    """The primitive and what matters of its shape: `conv 3×3, 64→128`, `sep_conv 5×5, 96`, `bn 64`."""
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


def _widths(graph: Graph) -> list[float]:
    """One width for all boxes with a shape and one for all without: in a column they are flush."""
    widest = {True: 0.0, False: 0.0}
    for node in graph.nodes:
        has_shape = node.shape is not None
        widest[has_shape] = max(widest[has_shape], _text_width(label(node), LABEL_SIZE) + 2 * PADDING)
    return [widest[node.shape is not None] for node in graph.nodes]


@lru_cache(maxsize=4096)
def _text_width(text: str, size: float, weight: str = "normal") -> float:
    font = FontProperties(size=size, weight=weight)
    return text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]


def _counts(graph: Graph) -> str:
    parameters = short_count(sum(parameter.size for parameter in graph.parameters))
    parts = [_plural(len(graph.nodes), "node"), _plural(len(graph.edges), "edge"), f"{parameters} parameters"]
    if graph.not_predicted:
        parts.append(f"{_plural(len(graph.not_predicted), 'tensor')} not predicted")
    return " · ".join(parts)


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _arcs(graph: Graph, longest: int) -> Arcs:
    """The virtual edges to show: of one distance all or none, at distance 2 always all."""
    sources, targets, distances = graph.virtual_edges(longest)
    most = VIRTUAL_EDGES_PER_NODE * len(graph.nodes)
    arcs: Arcs = {}
    shown = 0
    for distance in range(2, longest + 1):
        of_distance = np.flatnonzero(distances == distance)
        shown += len(of_distance)
        if not len(of_distance) or (arcs and shown > most):
            break
        arcs[distance] = list(zip(sources[of_distance].tolist(), targets[of_distance].tolist(), strict=True))
    return arcs


def _counts_of_virtual_edges(graph: Graph, longest: int, arcs: Arcs) -> str:
    count, shown = int((graph.virtual_edges(longest)[2] > 1).sum()), sum(map(len, arcs.values()))
    text = f"{_plural(count, 'virtual edge')} at distances 2 to {longest}"
    if shown == count:
        return text
    farthest = max(arcs)
    return f"{text}; shown are {shown:,}, at {f'distances 2 to {farthest}' if farthest > 2 else 'distance 2'}"


class _Entry(NamedTuple):
    """A primitive that occurs, and where it stands in the legend."""

    primitive: str
    text: str
    x: float
    line: int


def _legend(graph: Graph, width: float) -> list[_Entry]:
    counts = Counter(graph.primitives)
    entries = []
    x, line = 0.0, 0
    for primitive in filter(counts.get, COLORS):
        text = f"{primitive} {counts[primitive]:,}"
        end = x + SWATCH + _text_width(text, TEXT_SIZE)
        if x and end > width:
            x, line, end = 0.0, line + 1, end - x
        entries.append(_Entry(primitive, text, x, line))
        x = end + SWATCH
    return entries


def _canvas(width: float, head: float, height: float) -> Axes:
    """The axes of a new figure, in points: y = 0 is the top of the graph, and above it is room for the head."""
    width, height = width + 2 * PAGE_MARGIN, head + height + PAGE_MARGIN
    figure = Figure(figsize=(width / 72, height / 72))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(-PAGE_MARGIN, width - PAGE_MARGIN)
    axes.set_ylim(height - head, -head)
    return axes


def _draw_layout(axes: Axes, graph: Graph, layout: Layout) -> None:
    _draw_edges(axes, layout)
    for number, (node, box) in enumerate(zip(graph.nodes, layout.boxes, strict=True)):
        _draw_node(axes, number, node, box)
    _draw_blocks(axes, layout)


def _draw_head(axes: Axes, title: str, notes: Sequence[str], legend: Sequence[_Entry], top: float) -> None:
    _write(axes, 0, top + TITLE_SIZE, title, fontsize=TITLE_SIZE, fontweight="bold")
    y = top + TITLE_SIZE + LINE_HEIGHT + 2
    for number, note in enumerate(notes):
        if number:
            arc = Outline([(0, y - 3), (9, y - 3)])
            axes.add_artist(PathPatch(arc, fill=False, edgecolor=VIRTUAL, linewidth=1.2))
        _write(axes, SWATCH * number, y, note, fontsize=TEXT_SIZE, color=MUTED)
        y += LINE_HEIGHT
    y += 6
    for entry in legend:
        baseline = y + LINE_HEIGHT * entry.line
        swatch = Rectangle((entry.x, baseline - 7), 9, 8, facecolor=COLORS[entry.primitive], linewidth=0)
        swatch.set_gid(f"legend-{entry.primitive}")
        axes.add_artist(swatch)
        _write(axes, entry.x + SWATCH, baseline, entry.text, fontsize=TEXT_SIZE, color=MUTED)


def _write(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    axes.text(x, y, text, parse_math=False, **{"va": "baseline", **style})


def _draw_node(axes: Axes, number: int, node: Node, box: Box) -> None:
    left = box.x - box.width / 2
    names = [f"{parameter.name} {'×'.join(map(str, parameter.shape))}" for parameter in node.parameters]
    patch = FancyBboxPatch(
        (left, box.y),
        box.width,
        BOX_HEIGHT,
        boxstyle="round,pad=0,rounding_size=2",
        facecolor=COLORS[node.primitive],
        linewidth=0,
        zorder=5,
        gid=f"node-{number}",
        label="\n".join(names) or node.primitive,
        clip_on=False,
    )
    axes.add_artist(patch)
    color = SURFACE if node.primitive in DARK else INK
    baseline = box.y + BOX_HEIGHT / 2 + 0.36 * LABEL_SIZE  # digits are in the middle
    _write(axes, box.x, baseline, label(node), ha="center", fontsize=LABEL_SIZE, color=color, zorder=6)


def _draw_edges(axes: Axes, layout: Layout) -> None:
    for source, strokes in layout.lines.items():
        _draw_strokes(axes, strokes, f"line-{source}", color=EDGE, linewidth=0.7, zorder=2)
    for (source, target), points in layout.links.items():
        _draw_strokes(axes, [points], f"edge-{source}-{target}", color=EDGE, linewidth=0.7, zorder=3)
    ends = {end for start, end in layout.links.values() if end[1] - start[1] > LAYER_GAP + 0.1}
    heads = [_arrow(x, y, 1) for x, y in sorted(ends)]
    for _, _, below, above, *_ in itertools.chain.from_iterable(layout.carried):
        heads.append(_arrow(below[0], (below[1] + above[1]) / 2, -1))
    if heads:
        outline = Outline.make_compound_path(*heads)
        axes.add_artist(PathPatch(outline, facecolor=EDGE, linewidth=0, zorder=4, gid="arrows", clip_on=False))


def _arrow(x: float, y: float, direction: int) -> Outline:
    """A triangle that points down (1) or up (-1), to a point."""
    back = y - direction * 1.25 * ARROW
    return Outline([(x, y), (x - 0.6 * ARROW, back), (x + 0.6 * ARROW, back), (x, y)], closed=True)


def _draw_arcs(axes: Axes, layout: Layout, arcs: Arcs) -> None:
    for distance, pairs in arcs.items():
        reach = 1.3 * ARC_MARGIN * (distance - 1) / max(2, max(arcs) - 1)
        strokes = [_arc(layout, layout.boxes[u], layout.boxes[v], reach) for u, v in pairs]
        outline = Outline.make_compound_path(*strokes)
        crowd = max(1.0, len(pairs) / (1.5 * len(layout.boxes)))
        style = {"linewidth": 0.6, "alpha": 1 / (distance * crowd), "zorder": 1}
        patch = PathPatch(outline, fill=False, edgecolor=VIRTUAL, gid=f"virtual-{distance}", clip_on=False, **style)
        axes.add_artist(patch)


def _arc(layout: Layout, source: Box, target: Box, reach: float) -> Outline:
    """Left of the boxes; from a column to another one along a line that is carried over."""
    start = (source.x - source.width / 2, source.y + BOX_HEIGHT / 2)
    end = (target.x - target.width / 2, target.y + BOX_HEIGHT / 2)
    if source.column == target.column:
        x = min(start[0], end[0]) - reach
        return Outline([start, (x, start[1]), (x, end[1]), end], [Outline.MOVETO] + 3 * [Outline.CURVE4])
    points = [start]
    for strokes in layout.carried[source.column : target.column]:
        points += min(strokes, key=lambda stroke: abs(stroke[0][0] - points[-1][0]))
    return _outline([*points, end])


def _draw_blocks(axes: Axes, layout: Layout) -> None:
    """A bar beside each module and as much of its name as there is room for."""
    style = {"rotation": 90, "ha": "center", "va": "center", "fontsize": BLOCK_SIZE, "color": MUTED}
    for block in layout.blocks:
        parts = block.name.split(".")
        names = [".".join(parts[first:]) for first in range(len(parts)) if not parts[first].isdecimal()]
        fitting = [name for name in names if _text_width(name, BLOCK_SIZE) < block.bottom - block.top]
        if fitting:
            bar = Outline([(block.x, block.top), (block.x, block.bottom)])
            axes.add_artist(PathPatch(bar, edgecolor=BLOCK, linewidth=1.2, fill=False, clip_on=False))
            _write(axes, block.x - 5, (block.top + block.bottom) / 2, fitting[0], **style)


def _draw_strokes(axes: Axes, strokes: Iterable[Sequence[Point]], gid: str, **style: Any) -> None:
    outline = Outline.make_compound_path(*map(_outline, strokes))
    axes.add_artist(PathPatch(outline, fill=False, gid=gid, capstyle="butt", clip_on=False, **style))


def _outline(points: Sequence[Point]) -> Outline:
    """Through points: in an S where they are not above or beside each other, and else with round corners."""
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
    """From a corner towards its neighbour, so far as it is rounded."""
    length = math.dist(a, b)
    share = min(CORNER, length / 2) / length
    return a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1])
