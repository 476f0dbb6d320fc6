"""Figures that compare predictions: with training, by distance to training architectures, and between variants."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pipeline.reporting.comparison_tables import SIMILARITY_LABELS
from pipeline.reporting.plots import (
    REFERENCE_LINE,
    STYLE,
    WIDE,
    accuracy_axis,
    add_legend,
    chance_handle,
    chance_line,
    dot_handle,
    panel_grid,
)
from pipeline.reporting.theme import ACCENT, COMPARED, INK, MUTED, SERIES_COLORS


@matplotlib.rc_context(STYLE)
def accuracy_over_epochs(
    initialisations: pd.DataFrame, baseline: str, headline: str, chance: float, width: float = WIDE
) -> Figure:
    """Plot mean top-1 over the epochs of SGD, with predictions for the same architectures, a panel a split.

    Args:
        initialisations: a row for each split and initialisation: split, initialisation, top1, top1_error.
        baseline: the initialisation of 0 epochs.
        headline: the one that is a horizontal line.
        chance: the chance level.
        width: inches.
    """
    splits = list(dict.fromkeys(initialisations["split"]))
    figure, panels = panel_grid(len(splits), width, 1.9)
    for axes, split in zip(panels, splits, strict=True):
        own = initialisations[initialisations["split"] == split].set_index("initialisation")
        names = [name for name in own.index if name.startswith("sgd_")]
        epochs = [0, *(int(name.removeprefix("sgd_")) for name in names)]
        rows = own.loc[[baseline, *names]]
        axes.errorbar(epochs, rows["top1"], rows["top1_error"], color=COMPARED, marker="o", markersize=4, linewidth=1.4)
        predicted = own.loc[headline]
        axes.axhline(predicted["top1"], color=ACCENT, linewidth=1.4)
        if predicted["top1_error"] == predicted["top1_error"]:  # not of a single architecture
            low, high = (predicted["top1"] + sign * predicted["top1_error"] for sign in (-1, 1))
            axes.axhspan(low, high, color=ACCENT, alpha=0.15, linewidth=0)
        chance_line(axes.axhline, chance)
        axes.set_title(f"{split}, n = {predicted['architectures']:.0f}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        accuracy_axis(axes.yaxis, axes.set_ylim, max(initialisations["top1"].max(), chance))
    figure.supxlabel("epochs of SGD", fontsize=8.5, color=MUTED)
    figure.supylabel("top-1, %", fontsize=8.5, color=MUTED)
    handles = [dot_handle(ACCENT, "predicted parameters"), dot_handle(COMPARED, "SGD from random parameters")]
    add_legend(figure, [*handles, chance_handle(chance)])
    return figure


@matplotlib.rc_context(STYLE)
def accuracy_by_distance(distances: pd.DataFrame, chance: float, width: float = WIDE) -> Figure:
    """Plot top-1 with predicted parameters against the distance to the nearest training architecture.

    A panel is a way to compare networks, a colour a split.

    Args:
        distances: a row for each architecture and way: split, by, similarity, top1. Splits keep their order.
        chance: the chance level.
        width: inches.
    """
    ways: Sequence[str] = list(dict.fromkeys(distances["by"]))
    splits = list(dict.fromkeys(distances["split"]))
    colors = dict(zip(splits, SERIES_COLORS, strict=False))
    figure, panels = panel_grid(len(ways), width, 2.6)
    for axes, way in zip(panels, ways, strict=True):
        for split in reversed(splits):
            own = distances[(distances["by"] == way) & (distances["split"] == split)]
            axes.scatter(1 - own["similarity"], own["top1"], s=11, color=colors[split], alpha=0.65, linewidth=0)
        axes.set_title(f"by {SIMILARITY_LABELS.get(way, way)}")
        axes.set_xlabel("1 − similarity to the nearest")  # noqa: RUF001 (a minus sign)
        chance_line(axes.axhline, chance)
        accuracy_axis(axes.yaxis, axes.set_ylim, max(distances["top1"].max(), chance))
    figure.supylabel("top-1, %", fontsize=8.5, color=MUTED)
    add_legend(figure, [*(dot_handle(colors[split], split) for split in splits), chance_handle(chance)])
    return figure


@matplotlib.rc_context(STYLE)
def study_accuracies(study: pd.DataFrame, splits: Sequence[str], width: float = WIDE) -> Figure:
    """Plot the mean top-1 of each variant with its standard error over seeds, a panel a split, a row a variant.

    Args:
        study: a row for each variant and split: variant, split, top1, top1_error. The first variant is the reference.
        splits: those with a panel.
        width: inches.
    """
    variants = list(dict.fromkeys(study["variant"]))
    columns = len(splits) if width > 5 else 1
    rows = len(splits) // columns
    figure = Figure(figsize=(width, rows * (0.75 + 0.26 * len(variants))), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, sharex=True, squeeze=False).flat
    for axes, split in zip(panels, splits, strict=True):
        own = study[study["split"] == split].set_index("variant").loc[variants]
        colors = [ACCENT, *[COMPARED] * (len(variants) - 1)]
        axes.errorbar(own["top1"], range(len(variants)), xerr=own["top1_error"], fmt="none", ecolor=colors)
        axes.scatter(own["top1"], range(len(variants)), s=26, color=colors, zorder=2.5)
        axes.axvline(own["top1"].iloc[0], zorder=1.5, **REFERENCE_LINE)
        axes.set_title(split)
        axes.set_yticks(range(len(variants)), [name.replace("_", " ") for name in variants])
        axes.tick_params(axis="y", labelcolor=INK, pad=6)
        axes.set_ylim(len(variants) - 0.5, -0.5)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}"))
        axes.grid(axis="y", visible=False)
    figure.supxlabel("top-1, %", fontsize=8.5, color=MUTED)
    return figure
