"""The figures about a set of architectures, in the style of `pipeline.reporting.plots`.

Each takes a width in inches and returns a figure. Blue is what a panel or row is about, grey what it is compared with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from pipeline.reporting.plots import (
    INK,
    LINE,
    MUTED,
    PREDICTED,
    RANDOM,
    STYLE,
    WIDE,
    legend_of,
    print_right,
    short_count,
)

SPLIT = PREDICTED
TRAIN = RANDOM

BINS = 40  # of a distribution, equally wide on a logarithmic axis
RIDGE = 0.78  # the height of a distribution, in rows

Columns = Mapping[str, np.ndarray]
"""Values of all architectures of a split, by what they count."""


@matplotlib.rc_context(STYLE)
def distributions_by_split(columns: Mapping[str, Columns], width: float = WIDE) -> Figure:
    """How nodes and parameters are distributed, a panel each and a row a split: on a logarithmic axis, as high as the
    row is; behind each split is train. Medians are marked, and printed on the right.

    `columns` has for each split the values of `nodes` and `parameters`.
    """
    side_by_side = width > 5
    grid = (1, 2) if side_by_side else (2, 1)
    height = 0.55 + 0.46 * len(columns)
    figure = Figure(figsize=(width, 0.3 + height * grid[0]), layout="constrained")
    panels = figure.subplots(*grid, sharey=True)
    for axes, name, title in zip(panels, ("nodes", "parameters"), ("Nodes", "Parameters"), strict=True):
        _distributions(axes, {split: values[name] for split, values in columns.items()})
        axes.set_title(title, pad=4)
    if side_by_side:
        panels[1].tick_params(axis="y", labelleft=False)
    median = Line2D([], [], color=SPLIT, linewidth=2, label="median")
    legend_of(figure, [_patch(SPLIT, "the split"), _patch(TRAIN, "train, for comparison"), median])
    return figure


def _distributions(axes: Axes, values: Mapping[str, np.ndarray]) -> None:
    low = min(map(np.min, values.values()))
    high = max(map(np.max, values.values()))
    bins = np.geomspace(low / 1.05, high * 1.05, BINS + 1)
    for row, (split, of_split) in enumerate(values.items()):
        if split != "train" and "train" in values:
            _ridge(axes, row, values["train"], bins, TRAIN, alpha=0.3)
        _ridge(axes, row, of_split, bins, SPLIT, alpha=0.55)
        axes.plot([of_split.min(), of_split.max()], [row, row], color=SPLIT, linewidth=0.8, solid_capstyle="butt")
        median = np.median(of_split)
        axes.plot([median, median], [row, row - RIDGE], color=SPLIT, linewidth=2, solid_capstyle="butt")
        print_right(axes, row - 0.3, short_count(median), 34, SPLIT)
    _logarithmic(axes, bins[0], bins[-1], (1,) if high / low > 150 else (1, 2, 5))
    axes.set_yticks(np.arange(len(values)) - 0.3, list(values))
    axes.tick_params(axis="y", labelcolor=INK, pad=6)
    axes.set_ylim(len(values) - 0.85, -1)
    axes.grid(axis="y", visible=False)


def _logarithmic(axes: Axes, low: float, high: float, marks: Sequence[int]) -> None:
    """Makes the x-axis logarithmic, from `low` to `high`, with ticks at the powers of ten times each of `marks`."""
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(LogLocator(subs=marks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_minor_locator(NullLocator())


def _ridge(axes: Axes, row: int, values: np.ndarray, bins: np.ndarray, color: str, alpha: float) -> None:
    counts, _ = np.histogram(values, bins)
    heights = row - RIDGE * counts / counts.max()
    axes.stairs(heights, bins, baseline=row, fill=True, color=color, alpha=alpha, linewidth=0)


@matplotlib.rc_context(STYLE)
def paths_by_size(sample: pd.DataFrame, width: float = WIDE) -> Figure:
    """The average path of graphs against their number of nodes, a panel for each split but train, which is behind.

    `sample` has a row a graph: split, nodes, path.
    """
    train = sample[sample["split"] == "train"]
    groups = list(sample[sample["split"] != "train"].groupby("split", sort=False))
    columns = min(len(groups), 4 if width > 5 else 2)
    rows = math.ceil(len(groups) / columns)
    figure = Figure(figsize=(width, 0.65 + 1.65 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, (split, group) in zip(grid.flat, groups, strict=False):
        axes.scatter(train["nodes"], train["path"], s=9, color=TRAIN, alpha=0.5, linewidth=0)
        axes.scatter(group["nodes"], group["path"], s=9, color=SPLIT, alpha=0.7, linewidth=0)
        axes.set_title(split)
        _logarithmic(axes, min(20, sample["nodes"].min() / 1.2), max(1000, sample["nodes"].max() * 1.2), (1, 3))
    grid[0, 0].set_ylim(0, 1.05 * sample["path"].max())
    figure.supxlabel("nodes", fontsize=8.5, color=MUTED)
    figure.supylabel("average path, edges", fontsize=8.5, color=MUTED)
    legend_of(figure, [_dot(SPLIT, "the split"), _dot(TRAIN, "train")])
    return figure


@matplotlib.rc_context(STYLE)
def operations_by_cell(shares: pd.DataFrame, width: float = WIDE) -> Figure:
    """The share of each operation among the edges of normal cells and of reduction cells.

    `shares` has a row an operation: normal, reduce.
    """
    rows = np.arange(len(shares))
    figure = Figure(figsize=(width, 0.85 + 0.24 * len(shares)), layout="constrained")
    axes = figure.subplots()
    axes.hlines(rows, shares.min(axis=1), shares.max(axis=1), color=LINE, linewidth=2.5)
    axes.axvline(1 / len(shares), color=INK, linewidth=0.9, dashes=(4, 3), zorder=1.5)
    axes.scatter(shares["reduce"], rows, s=30, color=RANDOM, linewidth=0, zorder=3)
    axes.scatter(shares["normal"], rows, s=30, color=PREDICTED, linewidth=0, zorder=3)
    for row, operation in enumerate(shares.itertuples()):
        print_right(axes, row, f"{100 * operation.normal:.1f}", 34, PREDICTED)
        print_right(axes, row, f"{100 * operation.reduce:.1f}", 68, MUTED)
    axes.set_yticks(rows, list(shares.index))
    axes.tick_params(axis="y", labelcolor=INK, pad=6)
    axes.set_ylim(len(shares) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6 if width > 5 else 4, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}"))
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("% of the cells' edges")
    even = Line2D([], [], color=INK, linewidth=0.9, dashes=(2.5, 2), label=f"all alike: {100 / len(shares):.1f}%")
    legend_of(figure, [_dot(PREDICTED, "normal cells"), _dot(RANDOM, "reduction cells"), even])
    return figure


def _dot(color: str, label: str) -> Line2D:
    return Line2D([], [], color=color, marker="o", markersize=5, linewidth=0, label=label)


def _patch(color: str, label: str) -> Patch:
    return Patch(color=color, alpha=0.55, linewidth=0, label=label)
