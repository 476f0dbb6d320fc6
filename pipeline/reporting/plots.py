"""The figures of the report, in one style; those of training are in `pipeline.reporting.training_plots`.

Every function returns a matplotlib `Figure` of `width` inches: `WIDE` for a page or a README, `NARROW` for a
phone, where panels lie below instead of beside each other. Accuracies come in as shares and are shown in
percent. The functions trust their input: whoever calls them has checked that every number is finite.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

WIDE = 7.2
NARROW = 3.6

INK = "#1d2126"
MUTED = "#68707b"
LINE = "#dfe3e8"
PREDICTED = "#1f64ae"
RANDOM = "#a1978b"
SURFACE = "#fefefe"

THEME = {
    INK: "ink",
    MUTED: "muted",
    LINE: "line",
    PREDICTED: "predicted",
    RANDOM: "random",
    SURFACE: "surface",
}
"""The only colours that figures use, with the CSS variables that replace them in a page."""

INITIALISATIONS = {
    "predicted": ("predicted parameters", PREDICTED),
    "random": ("random initialisation", RANDOM),
}

STYLE = {
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

SWARM_BIN = 0.01  # share of accuracy within which points lie beside each other
SWARM_STEP = 0.05  # distance of two points beside each other, in rows
SWARM_REACH = 0.17  # how far a swarm may spread from its middle, in rows


@matplotlib.rc_context(STYLE)
def accuracy_by_split(architectures: pd.DataFrame, chance: float, width: float = WIDE) -> Figure:
    """The distribution of top-1 over the architectures of each split, predicted above random.

    A point is an architecture, a box the middle half of them, a bar their mean, which is printed
    on the right. `architectures` has a row an architecture: split, predicted_top1, random_top1; splits keep
    their order.
    """
    groups = list(architectures.groupby("split", sort=False))
    figure = Figure(figsize=(width, 0.85 + 0.62 * len(groups)), layout="constrained")
    axes = figure.subplots()
    for row, (_, group) in enumerate(groups):
        for initialisation, y in (("predicted", row - 0.21), ("random", row + 0.21)):
            _distribution(axes, group[f"{initialisation}_top1"].to_numpy(), y, INITIALISATIONS[initialisation][1])
    largest = architectures[["predicted_top1", "random_top1"]].to_numpy().max()
    accuracy_axis(axes.xaxis, axes.set_xlim, max(largest, chance))
    chance_line(axes.axvline, chance)
    axes.set_yticks(range(len(groups)), [f"{split}\nn = {len(group)}" for split, group in groups])
    axes.tick_params(axis="y", labelcolor=INK, pad=6)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("top-1, % of test images")
    _legend(figure, chance)
    return figure


@matplotlib.rc_context(STYLE)
def finetuning_curves(curves: pd.DataFrame, chances: dict[str, float], width: float = WIDE) -> Figure:
    """Test top-1 over the steps of fine-tuning, a panel a data set: mean and standard error.

    `curves` has a row a measurement: dataset, architecture, initialisation, seed, step, test_top1; `chances`
    the chance level of each data set.
    """
    datasets = list(dict.fromkeys(curves["dataset"]))
    panels = panel_grid(len(datasets), width, height=2.3)
    for axes, dataset in zip(panels, datasets, strict=True):
        of_dataset = curves[curves["dataset"] == dataset]
        for initialisation, (_, color) in reversed(INITIALISATIONS.items()):
            runs = of_dataset[of_dataset["initialisation"] == initialisation]
            means = runs.groupby("step")["test_top1"].mean()
            errors = runs.groupby("step")["test_top1"].sem().fillna(0)  # of one run: none is known
            low, high = means - errors, means + errors
            axes.fill_between(means.index, low, high, color=color, alpha=0.2, linewidth=0)
            axes.plot(means.index, means, color=color, linewidth=1.6, marker="o", markersize=2.8)
        values = of_dataset.groupby(["initialisation", "step"])["test_top1"].mean()
        accuracy_axis(axes.yaxis, axes.set_ylim, max(values.max(), chances[dataset]))
        chance_line(axes.axhline, chances[dataset])
        axes.set_title(dataset)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.margins(x=0.02)
    for axes in panels[:: max(1, _columns(len(panels), width))]:
        axes.set_ylabel("top-1, %")
    legend_of(panels[0].figure, [*map(_line_handle, INITIALISATIONS), chance_handle(None)])
    return panels[0].figure


@matplotlib.rc_context(STYLE)
def accuracy_by_size(architectures: pd.DataFrame, chance: float, width: float = WIDE) -> Figure:
    """Top-1 against the number of parameters, a panel a split, all on the same scales.

    `architectures` has a row an architecture: split, name, parameters, predicted_top1, random_top1; those
    with a name are labelled.
    """
    groups = list(architectures.groupby("split", sort=False))
    columns = min(3 if width > 5 else 2, len(groups))
    rows = math.ceil(len(groups) / columns)
    figure = Figure(figsize=(width, 0.65 + 1.75 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    largest = architectures[["predicted_top1", "random_top1"]].to_numpy().max()
    for axes in grid.flat[len(groups) :]:
        axes.set_visible(False)
    for position, (axes, (split, group)) in enumerate(zip(grid.flat, groups, strict=False)):
        for initialisation in ("random", "predicted"):
            accuracy, color = group[f"{initialisation}_top1"], INITIALISATIONS[initialisation][1]
            axes.scatter(group["parameters"], accuracy, s=9, color=color, alpha=0.6, linewidth=0)
        _label_names(axes, group[group["name"] != ""])
        axes.set_title(split)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.tick_params(labelbottom=position >= len(groups) - columns)
        chance_line(axes.axhline, chance)
    accuracy_axis(grid[0, 0].yaxis, grid[0, 0].set_ylim, max(largest, chance))
    smallest, biggest = architectures["parameters"].min(), architectures["parameters"].max()
    grid[0, 0].set_xlim(smallest / 1.5, biggest * 1.5)
    if biggest / smallest > 10:
        grid[0, 0].xaxis.set_major_locator(LogLocator(numticks=4 if width > 5 else 3))
    figure.supxlabel("parameters", fontsize=8.5, color=MUTED)
    figure.supylabel("top-1, %", fontsize=8.5, color=MUTED)
    _legend(figure, chance)
    return figure


def short_count(number: float) -> str:
    """A count in three digits: 950, 12.3 k, 1.23 M."""
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= 0.9995 * unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:.3g}"


def png(figure: Figure) -> bytes:
    """The figure as PNG with two pixels for each one of a `WIDE` figure shown 720 pixels wide."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200, metadata={"Software": None})
    return buffer.getvalue()


def inline_svg(figure: Figure, name: str, description: str, theme: Mapping[str, str] = THEME) -> str:
    """An `<svg>` element for a page that defines the variables of `theme`: `--ink` and so on.

    `name` has to be unique in the page: it keeps the identifiers of several figures apart.
    """
    buffer = io.StringIO()
    style = {**STYLE, "svg.hashsalt": name}  # the same identifiers in every run
    with matplotlib.rc_context(style):
        figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date")))
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->|\n\s*", " ", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    for color, variable in theme.items():
        svg = svg.replace(color, f"var(--{variable})")
    box = re.search(r'viewBox="[^"]+"', svg)
    assert box is not None
    label = description.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    head = f'<svg {box[0]} role="img" aria-label="{label}" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return head + svg[svg.index(">") + 1 :].strip()


def panel_grid(count: int, width: float, height: float) -> list[Axes]:
    """`count` panels in a figure of `width` inches, two beside each other where it is wide, each `height` high."""
    columns = _columns(count, width)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(width, 0.3 + height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[count:]:
        axes.set_visible(False)
    return list(grid.flat[:count])


def accuracy_axis(axis: Axis, set_limits: Callable[[float, float], Any], largest: float) -> None:
    """From 0 to a little above the largest share, at most to 100 %."""
    set_limits(-0.005, min(1.03, 1.08 * largest))
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}"))


def chance_line(draw: Callable[..., Any], chance: float) -> None:
    """The chance level, by `axes.axhline` or `axes.axvline`."""
    draw(chance, color=INK, linewidth=0.9, dashes=(4, 3), zorder=1.5)


def chance_handle(chance: float | None) -> Line2D:
    """What a legend says of it; None where panels have chance levels of their own."""
    label = "chance" if chance is None else f"chance {100 * chance:.3g}%"
    return Line2D([], [], color=INK, linewidth=0.9, dashes=(2.5, 2), label=label)


def print_right(axes: Axes, y: float, text: str, distance: float, color: str) -> None:
    """Prints right-aligned text beside the axes; `distance` is that of its end from the axes, in points."""
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


def legend_of(figure: Figure, handles: Sequence[Artist]) -> None:
    """Puts a legend above all panels, in two rows if it is too long for one, in two columns if the figure is narrow."""
    width = figure.get_figwidth()
    characters = sum(len(str(handle.get_label())) + 6 for handle in handles)  # a line takes as much as 6
    columns = len(handles) if characters <= 15 * width else math.ceil(len(handles) / 2)
    figure.legend(handles=list(handles), loc="outside upper left", ncols=2 if width < 5 else columns)


def _distribution(axes: Axes, values: np.ndarray, y: float, color: str) -> None:
    low, high = np.quantile(values, (0.25, 0.75))
    if len(values) > 4:
        box = Rectangle((low, y - SWARM_REACH), high - low, 2 * SWARM_REACH, color=color, alpha=0.2, linewidth=0)
        axes.add_patch(box)
    axes.scatter(values, y + _swarm(values), s=6, color=color, alpha=0.6, linewidth=0)
    mean = values.mean()
    axes.plot([mean, mean], [y - SWARM_REACH, y + SWARM_REACH], color=color, linewidth=2, solid_capstyle="butt")
    print_right(axes, y, f"{100 * mean:.1f}", 30, PREDICTED if color == PREDICTED else MUTED)


def _swarm(values: np.ndarray) -> np.ndarray:
    """Each point's distance from the middle of its row: points of one bin lie beside each other."""
    offsets = np.zeros(len(values))
    bins = np.floor(values / SWARM_BIN)
    for number in np.unique(bins):
        members = np.flatnonzero(bins == number)
        places = np.arange(len(members)) - (len(members) - 1) / 2
        step = min(SWARM_STEP, SWARM_REACH / max(places[-1], 1))
        offsets[members] = step * places
    return offsets


def _label_names(axes: Axes, named: pd.DataFrame) -> None:
    for rank, network in enumerate(named.sort_values("parameters").itertuples()):
        axes.annotate(
            network.name,
            (network.parameters, network.predicted_top1),
            xytext=(0, -10 if rank % 2 else 4),  # below and above in turn: neighbours do not overlap
            textcoords="offset points",
            ha="right" if network.parameters > 1e7 else "center",
            fontsize=7.5,
            color=INK,
        )


def _columns(count: int, width: float) -> int:
    return min(count, 2) if width > 5 else 1


def _line_handle(initialisation: str) -> Line2D:
    label, color = INITIALISATIONS[initialisation]
    return Line2D([], [], color=color, linewidth=1.6, marker="o", markersize=3, label=label)


def _legend(figure: Figure, chance: float) -> None:
    dots = [
        Line2D([], [], color=color, marker="o", markersize=5, linewidth=0, label=label)
        for label, color in INITIALISATIONS.values()
    ]
    legend_of(figure, [*dots, chance_handle(chance)])
