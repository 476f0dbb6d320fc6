"""Figures about accuracy: of the architectures of each split, and while fine-tuning. Shares are shown in percent.

Each figure compares any number of initialisations; the first one is the subject of the report.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator

from pipeline.reporting.numbers import short_count
from pipeline.reporting.plots import (
    STYLE,
    WIDE,
    accuracy_axis,
    add_legend,
    chance_handle,
    chance_line,
    dot_handle,
    logarithmic_ticks,
    print_right,
)
from pipeline.reporting.theme import INK, MUTED, SERIES_COLORS

LANE = 0.42  # height of an initialisation within a split; lengths on this axis are in rows
SPLIT_GAP = 0.16  # between the lanes of two splits, in rows
LANE_REACH = 0.17  # height of a box, and largest distance of a point, above and below the middle of its lane, in rows
SWARM_BIN = 0.01  # share of accuracy within which points lie beside each other
SWARM_STEP = 0.05  # distance of two points beside each other, in rows


class Series(NamedTuple):
    """An initialisation in a figure: its name in the tables, its label in the legend, and its colour."""

    name: str
    label: str
    color: str


def series_of(labels: Mapping[str, str]) -> list[Series]:
    """Return the initialisations of a figure, given their labels by name, with a colour for each.

    Colours repeat from the ninth one on.
    """
    return [
        Series(name, label, SERIES_COLORS[position % len(SERIES_COLORS)])
        for position, (name, label) in enumerate(labels.items())
    ]


@matplotlib.rc_context(STYLE)
def accuracy_by_split(
    architectures: pd.DataFrame, series: Sequence[Series], chance: float, width: float = WIDE
) -> Figure:
    """Plot the distribution of top-1 over the architectures of each split, with a lane for each initialisation.

    A point is an architecture, a box the middle half of them, a bar their mean, which is printed on the right.

    Args:
        architectures: a row for each architecture and initialisation: split, initialisation, top1. Splits keep their
            order.
        series: the initialisations, from the top of a split down.
        chance: the chance level.
        width: inches.
    """
    groups = list(architectures.groupby("split", sort=False))
    height = LANE * len(series) + SPLIT_GAP  # of a split, in rows
    figure = Figure(figsize=(width, 0.85 + 0.62 * height * len(groups)), layout="constrained")
    axes = figure.subplots()
    ticks = [height * position for position in range(len(groups))]
    for middle, (_, group) in zip(ticks, groups, strict=True):
        for lane, one in enumerate(series):
            y = middle + LANE * (lane - (len(series) - 1) / 2)
            top1 = group.loc[group["initialisation"] == one.name, "top1"].to_numpy()
            _distribution(axes, top1, y, one.color)
            print_right(axes, y, f"{100 * top1.mean():.1f}", 30, MUTED if lane else one.color)
    accuracy_axis(axes.xaxis, axes.set_xlim, max(architectures["top1"].max(), chance))
    chance_line(axes.axvline, chance)
    axes.set_yticks(ticks, [f"{split}\nn = {len(group) // len(series)}" for split, group in groups])
    axes.tick_params(axis="y", labelcolor=INK, pad=6)
    axes.set_ylim(height * (len(groups) - 0.5), -height / 2)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("top-1, % of test images")
    _add_legend(figure, series, chance)
    return figure


@matplotlib.rc_context(STYLE)
def accuracy_by_size(
    architectures: pd.DataFrame, series: Sequence[Series], chance: float, width: float = WIDE
) -> Figure:
    """Plot top-1 against the number of parameters, a panel a split, all on the same scales.

    Networks with a name are labelled, at the point of the first initialisation.

    Args:
        architectures: a row for each architecture and initialisation: split, name, parameters, initialisation, top1.
        series: the initialisations; the points of the first one lie above the others.
        chance: the chance level.
        width: inches.
    """
    groups = list(architectures.groupby("split", sort=False))
    columns = min(3 if width > 5 else 2, len(groups))
    rows = math.ceil(len(groups) / columns)
    figure = Figure(figsize=(width, 0.65 + 1.75 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(groups) :]:
        axes.set_visible(False)
    for position, (axes, (split, group)) in enumerate(zip(grid.flat, groups, strict=False)):
        for one in reversed(series):
            points = group[group["initialisation"] == one.name]
            axes.scatter(points["parameters"], points["top1"], s=9, color=one.color, alpha=0.6, linewidth=0)
        subject = group[group["initialisation"] == series[0].name]
        _label_names(axes, subject[subject["name"] != ""])
        axes.set_title(split)
        axes.set_xscale("log")
        logarithmic_ticks(axes.xaxis, short_count)
        axes.tick_params(labelbottom=position >= len(groups) - columns)
        chance_line(axes.axhline, chance)
    first = grid[0, 0]
    accuracy_axis(first.yaxis, first.set_ylim, max(architectures["top1"].max(), chance))
    smallest, biggest = architectures["parameters"].min(), architectures["parameters"].max()
    first.set_xlim(smallest / 1.5, biggest * 1.5)
    if biggest / smallest > 10:
        first.xaxis.set_major_locator(LogLocator(numticks=4 if width > 5 else 3))
    figure.supxlabel("parameters", fontsize=8.5, color=MUTED)
    figure.supylabel("top-1, %", fontsize=8.5, color=MUTED)
    _add_legend(figure, series, chance)
    return figure


@matplotlib.rc_context(STYLE)
def finetuning_curves(
    curves: pd.DataFrame, series: Sequence[Series], chances: Mapping[str, float], width: float = WIDE
) -> Figure:
    """Plot test top-1 over the steps of fine-tuning: mean and standard error over runs.

    A row of panels is a data set, a panel a number of training images per class.

    Args:
        curves: a row a measurement: dataset, images_per_class, architecture, initialisation, seed, step, test_top1.
        series: the initialisations; the curve of the first one lies above the others.
        chances: the chance level of each data set.
        width: inches.
    """
    shots = {str(name): list(own["images_per_class"].unique()) for name, own in curves.groupby("dataset", sort=False)}
    most = max(map(len, shots.values()))
    columns = min(most, 3) if width > 5 else min(most, 2)
    rows = sum(math.ceil(len(numbers) / columns) for numbers in shots.values())
    figure = Figure(figsize=(width, 0.6 + 1.75 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    row = 0
    for dataset, numbers in shots.items():
        own_rows = math.ceil(len(numbers) / columns)
        panels = grid[row : row + own_rows].flat
        row += own_rows
        largest = chances[dataset]
        for axes, number in zip(panels, numbers, strict=False):
            own = curves[(curves["dataset"] == dataset) & (curves["images_per_class"] == number)]
            for one in reversed(series):
                _mean_curve(axes, own[own["initialisation"] == one.name], one.color)
            largest = max(largest, own.groupby(["initialisation", "step"])["test_top1"].mean().max())
            axes.set_title(f"{dataset}, {number:,} per class")
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.margins(x=0.02)
        for axes in panels[: len(numbers)]:
            accuracy_axis(axes.yaxis, axes.set_ylim, largest)
            chance_line(axes.axhline, chances[dataset])
        for axes in panels[len(numbers) :]:
            axes.set_visible(False)
    figure.supxlabel("step", fontsize=8.5, color=MUTED)
    figure.supylabel("top-1, %", fontsize=8.5, color=MUTED)
    add_legend(figure, [*map(_curve_handle, series), chance_handle(None)])
    return figure


def _mean_curve(axes: Axes, runs: pd.DataFrame, color: str) -> None:
    means = runs.groupby("step")["test_top1"].mean()
    errors = runs.groupby("step")["test_top1"].sem().fillna(0)  # a single run has none
    axes.fill_between(means.index, means - errors, means + errors, color=color, alpha=0.14, linewidth=0)
    axes.plot(means.index, means, color=color, linewidth=1.4, marker="o", markersize=2.4)


def _distribution(axes: Axes, values: np.ndarray, y: float, color: str) -> None:
    low, high = np.quantile(values, (0.25, 0.75))
    if len(values) > 4:
        box = Rectangle((low, y - LANE_REACH), high - low, 2 * LANE_REACH, color=color, alpha=0.2, linewidth=0)
        axes.add_patch(box)
    axes.scatter(values, y + _swarm(values), s=6, color=color, alpha=0.6, linewidth=0)
    mean = values.mean()
    axes.plot([mean, mean], [y - LANE_REACH, y + LANE_REACH], color=color, linewidth=2, solid_capstyle="butt")


def _swarm(values: np.ndarray) -> np.ndarray:
    """Return each point's distance from the middle of its lane: points of one bin lie beside each other.

    These lines are not seaborn's swarm, because seaborn is not a dependency and would be one for this function alone.
    Its swarm also piles up at the edge the points that do not fit, where this one moves all points of a bin closer.
    """
    offsets = np.zeros(len(values))
    bins = np.floor(values / SWARM_BIN)
    for number in np.unique(bins):
        members = np.flatnonzero(bins == number)
        places = np.arange(len(members)) - (len(members) - 1) / 2
        step = min(SWARM_STEP, LANE_REACH / max(places[-1], 1))
        offsets[members] = step * places
    return offsets


def _label_names(axes: Axes, named: pd.DataFrame) -> None:
    for rank, network in enumerate(named.sort_values("parameters").itertuples()):
        axes.annotate(
            network.name,
            (network.parameters, network.top1),
            xytext=(0, -10 if rank % 2 else 4),  # below and above in turn: neighbours do not overlap
            textcoords="offset points",
            ha="right" if network.parameters > 1e7 else "center",
            fontsize=7.5,
            color=INK,
        )


def _curve_handle(one: Series) -> Line2D:
    return Line2D([], [], color=one.color, linewidth=1.6, marker="o", markersize=3, label=one.label)


def _add_legend(figure: Figure, series: Sequence[Series], chance: float) -> None:
    add_legend(figure, [*(dot_handle(one.color, one.label) for one in series), chance_handle(chance)])
