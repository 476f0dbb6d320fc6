"""Figures about a set of architectures. Blue is the subject of a panel or row, grey what it is compared with."""

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
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from pipeline.reporting.numbers import short_count
from pipeline.reporting.plots import (
    REFERENCE_HANDLE,
    STYLE,
    WIDE,
    add_legend,
    chance_line,
    dot_handle,
    logarithmic_ticks,
    print_right,
)
from pipeline.reporting.theme import ACCENT, COMPARED, INK, LINE, MUTED

DISTRIBUTION_BINS = 40  # equally wide on a logarithmic axis
DISTRIBUTION_HEIGHT = 0.78  # in rows

Quantities = Mapping[str, np.ndarray]
"""Values of all architectures of a split, by quantity."""


@matplotlib.rc_context(STYLE)
def distributions_by_split(columns: Mapping[str, Quantities], width: float = WIDE) -> Figure:
    """Plot the distributions of nodes and of parameters, a panel each, with a row for each split and train behind it.

    Axes are logarithmic. A distribution is as high as its row. Medians are marked, and printed on the right.

    Args:
        columns: for each split, the values of `nodes` and `parameters`.
        width: inches.
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
    median = Line2D([], [], color=ACCENT, linewidth=2, label="median")
    add_legend(figure, [_patch(ACCENT, "the split"), _patch(COMPARED, "train, for comparison"), median])
    return figure


def _distributions(axes: Axes, values: Mapping[str, np.ndarray]) -> None:
    low = min(map(np.min, values.values()))
    high = max(map(np.max, values.values()))
    bins = np.geomspace(low / 1.05, high * 1.05, DISTRIBUTION_BINS + 1)
    for row, (split, of_split) in enumerate(values.items()):
        if split != "train" and "train" in values:
            _distribution(axes, row, values["train"], bins, COMPARED, alpha=0.3)
        _distribution(axes, row, of_split, bins, ACCENT, alpha=0.55)
        axes.plot([of_split.min(), of_split.max()], [row, row], color=ACCENT, linewidth=0.8, solid_capstyle="butt")
        median = np.median(of_split)
        axes.plot([median, median], [row, row - DISTRIBUTION_HEIGHT], color=ACCENT, linewidth=2, solid_capstyle="butt")
        print_right(axes, row - 0.3, short_count(median), 34, ACCENT)
    _logarithmic(axes, bins[0], bins[-1], (1,) if high / low > 150 else (1, 2, 5))
    axes.set_yticks(np.arange(len(values)) - 0.3, list(values))
    axes.tick_params(axis="y", labelcolor=INK, pad=6)
    axes.set_ylim(len(values) - 0.85, -1)
    axes.grid(axis="y", visible=False)


def _logarithmic(axes: Axes, low: float, high: float, marks: Sequence[int]) -> None:
    """Make the x-axis logarithmic, from `low` to `high`, with ticks at the powers of ten times each of `marks`."""
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    logarithmic_ticks(axes.xaxis, short_count, LogLocator(subs=marks))


def _distribution(axes: Axes, row: int, values: np.ndarray, bins: np.ndarray, color: str, alpha: float) -> None:
    counts, _ = np.histogram(values, bins)
    heights = row - DISTRIBUTION_HEIGHT * counts / counts.max()
    axes.stairs(heights, bins, baseline=row, fill=True, color=color, alpha=alpha, linewidth=0)


@matplotlib.rc_context(STYLE)
def paths_by_size(sample: pd.DataFrame, width: float = WIDE) -> Figure:
    """Plot the average path of graphs against their nodes, a panel for each split but train, which is behind each.

    Args:
        sample: a row a graph: split, nodes, path.
        width: inches.
    """
    train = sample[sample["split"] == "train"]
    groups = list(sample[sample["split"] != "train"].groupby("split", sort=False))
    columns = min(len(groups), 4 if width > 5 else 2)
    rows = math.ceil(len(groups) / columns)
    figure = Figure(figsize=(width, 0.65 + 1.65 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, (split, group) in zip(grid.flat, groups, strict=False):
        axes.scatter(train["nodes"], train["path"], s=9, color=COMPARED, alpha=0.5, linewidth=0)
        axes.scatter(group["nodes"], group["path"], s=9, color=ACCENT, alpha=0.7, linewidth=0)
        axes.set_title(split)
        _logarithmic(axes, min(20, sample["nodes"].min() / 1.2), max(1000, sample["nodes"].max() * 1.2), (1, 3))
    grid[0, 0].set_ylim(0, 1.05 * sample["path"].max())
    figure.supxlabel("nodes", fontsize=8.5, color=MUTED)
    figure.supylabel("average path, edges", fontsize=8.5, color=MUTED)
    add_legend(figure, [dot_handle(ACCENT, "the split"), dot_handle(COMPARED, "train")])
    return figure


@matplotlib.rc_context(STYLE)
def operations_by_cell(shares: pd.DataFrame, width: float = WIDE) -> Figure:
    """Plot the share of each operation among the edges of normal cells and of reduction cells.

    Args:
        shares: a row an operation: normal, reduce.
        width: inches.
    """
    rows = np.arange(len(shares))
    figure = Figure(figsize=(width, 0.85 + 0.24 * len(shares)), layout="constrained")
    axes = figure.subplots()
    axes.hlines(rows, shares.min(axis=1), shares.max(axis=1), color=LINE, linewidth=2.5)
    chance_line(axes.axvline, 1 / len(shares))
    axes.scatter(shares["reduce"], rows, s=30, color=COMPARED, linewidth=0, zorder=3)
    axes.scatter(shares["normal"], rows, s=30, color=ACCENT, linewidth=0, zorder=3)
    for row, operation in enumerate(shares.itertuples()):
        print_right(axes, row, f"{100 * operation.normal:.1f}", 34, ACCENT)
        print_right(axes, row, f"{100 * operation.reduce:.1f}", 68, MUTED)
    axes.set_yticks(rows, list(shares.index))
    axes.tick_params(axis="y", labelcolor=INK, pad=6)
    axes.set_ylim(len(shares) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6 if width > 5 else 4, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}"))
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("% of the cells' edges")
    even = Line2D([], [], label=f"all alike: {100 / len(shares):.1f}%", **REFERENCE_HANDLE)
    add_legend(figure, [dot_handle(ACCENT, "normal cells"), dot_handle(COMPARED, "reduction cells"), even])
    return figure


def _patch(color: str, label: str) -> Patch:
    return Patch(color=color, alpha=0.55, linewidth=0, label=label)
