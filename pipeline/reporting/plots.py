"""Style and parts that all figures share, and how a figure becomes a PNG or an SVG.

Functions that return a figure take its width in inches: `WIDE` for a page or a README, `NARROW` for a phone, where
panels lie below each other. They trust their input: `read_results` has checked that every number is finite.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from pipeline.reporting.theme import CSS_VARIABLES, INK, LINE, MUTED, SURFACE

WIDE = 7.2
NARROW = 3.6

STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 8.5,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "figure.facecolor": SURFACE,
    "font.family": "sans-serif",
    "font.size": 9,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "legend.borderaxespad": 0.5,
    "legend.borderpad": 0,
    "legend.columnspacing": 1.4,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.handlelength": 1.3,
    "legend.handletextpad": 0.5,
    "legend.labelcolor": MUTED,
    "svg.fonttype": "none",  # text stays text: it can be searched, and takes the colour and font of the page
    "text.color": INK,
    "xtick.color": LINE,
    "xtick.labelcolor": MUTED,
    "xtick.labelsize": 8.5,
    "xtick.major.size": 0,
    "ytick.labelcolor": MUTED,
    "ytick.labelsize": 8.5,
    "ytick.major.size": 0,
}
"""The parameters of matplotlib that all figures share."""

REFERENCE_LINE: dict[str, Any] = {"color": INK, "linewidth": 0.9, "dashes": (4, 3)}
REFERENCE_HANDLE: dict[str, Any] = REFERENCE_LINE | {"dashes": (2.5, 2)}
"""The same in a legend, where there is room for two dashes."""


def png(figure: Figure) -> bytes:
    """Return the figure as a PNG with two pixels for each pixel of a `WIDE` figure that is shown 720 pixels wide."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200, metadata={"Software": None})
    return buffer.getvalue()


def inline_svg(figure: Figure, name: str, description: str, variables: Mapping[str, str] = CSS_VARIABLES) -> str:
    """Return an `<svg>` element for a page.

    Args:
        figure: the figure.
        name: unique in the page, because it keeps the identifiers of several figures apart.
        description: the text for readers who do not see the figure.
        variables: the CSS variable that replaces each colour; the page defines `--ink` and so on.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):  # the same identifiers in every run
        figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date")))
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->|\n\s*", " ", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    for color, variable in variables.items():
        svg = svg.replace(color, f"var(--{variable})")
    box = re.search(r'viewBox="[^"]+"', svg)
    assert box is not None
    label = description.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    head = f'<svg {box[0]} role="img" aria-label="{label}" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return head + svg[svg.index(">") + 1 :].strip()


def panel_grid(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure of `width` inches with `count` panels of `height` inches, two beside each other if it is wide."""
    columns = panel_columns(count, width)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(width, 0.3 + height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[count:]:
        axes.set_visible(False)
    return figure, list(grid.flat[:count])


def panel_columns(count: int, width: float) -> int:
    """Return how many of `count` panels are beside each other."""
    return min(count, 2) if width > 5 else 1


def accuracy_axis(axis: Axis, set_limits: Callable[[float, float], Any], largest: float) -> None:
    """Let an axis reach from 0 to a little above the largest share, at most to 100 %, with ticks in percent."""
    set_limits(-0.005, min(1.03, 1.08 * largest))
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}"))


def logarithmic_ticks(axis: Axis, format_tick: Callable[[float], str], locator: LogLocator | None = None) -> None:
    """Label the ticks of a logarithmic axis, which lie where the locator wants them, and leave out minor ticks."""
    if locator is not None:
        axis.set_major_locator(locator)
    axis.set_major_formatter(FuncFormatter(lambda value, _: format_tick(value)))
    axis.set_minor_formatter(NullFormatter())
    axis.set_minor_locator(NullLocator())


def chance_line(add_line: Callable[..., Any], chance: float) -> None:
    """Add a line at the chance level, with `axes.axhline` or `axes.axvline`."""
    add_line(chance, zorder=1.5, **REFERENCE_LINE)


def chance_handle(chance: float | None) -> Line2D:
    """Return the legend's entry of the chance level; None if each panel has its own."""
    label = "chance" if chance is None else f"chance {100 * chance:.3g}%"
    return Line2D([], [], label=label, **REFERENCE_HANDLE)


def dot_handle(color: str, label: str) -> Line2D:
    """Return the legend's entry of points."""
    return Line2D([], [], color=color, marker="o", markersize=5, linewidth=0, label=label)


def print_right(axes: Axes, y: float, text: str, distance: float, color: str) -> None:
    """Print right-aligned text beside the axes, which ends `distance` points right of them."""
    axes.annotate(
        text,
        (1, y),
        xycoords=("axes fraction", "data"),
        xytext=(distance, 0),
        textcoords="offset points",
        va="center",
        ha="right",
        color=color,
        fontsize=8.5,
    )


def add_legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """Add a legend above all panels: in two rows if it is too long for one, in two columns if the figure is narrow."""
    width = figure.get_figwidth()
    characters = sum(len(str(handle.get_label())) + 6 for handle in handles)  # a line takes as much as 6
    columns = len(handles) if characters <= 15 * width else math.ceil(len(handles) / 2)
    figure.legend(handles=list(handles), loc="outside upper left", ncols=2 if width < 5 else columns)
