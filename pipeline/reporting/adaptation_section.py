"""The table, the sentences and the figure about hypernetworks that learn from few images of other data sets."""

from __future__ import annotations

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from pipeline.console import percent
from pipeline.reporting.cells import difference_cell, learning_rate_cell
from pipeline.reporting.numbers import MINUS_SIGN, count, short_count
from pipeline.reporting.page import Table
from pipeline.reporting.plots import (
    STYLE,
    WIDE,
    accuracy_axis,
    add_legend,
    chance_handle,
    chance_line,
    dot_handle,
    logarithmic_ticks,
    panel_grid,
)
from pipeline.reporting.theme import ACCENT, COMPARED, MUTED, SERIES_COLORS
from pipeline.training.adaptation_tables import ADAPTED, ALONE, SCRATCH

LABELS = {
    ADAPTED: "the adapted hypernetwork",
    SCRATCH: "a hypernetwork from scratch",
    ALONE: "each network trained by itself",
}
COLORS = {ADAPTED: ACCENT, SCRATCH: COMPARED, ALONE: SERIES_COLORS[2]}


def adaptation_table(adaptation: pd.DataFrame) -> Table:
    """Return a row for each data set, number of images and way to get parameters.

    Args:
        adaptation: the summary, a row for each of them.
    """
    columns = (
        *("data set", "images per class", "parameters from", "learning rate", "top-1, %"),
        *(f"{MINUS_SIGN} adapted", "images × networks", "seconds"),
    )
    rows = [
        (
            row["dataset"],
            f"all ({row['images_per_class']:,})" if row["is_all"] else f"{row['images_per_class']:,}",
            LABELS[row["start"]],
            learning_rate_cell(row),
            percent(row["test_top1"], row["test_top1_error"]),
            difference_cell(row),
            short_count(row["network_images"]),
            "" if pd.isna(row["seconds"]) else f"{row['seconds']:.0f}",
        )
        for row in adaptation.to_dict("records")
    ]
    return Table(columns, rows, words=3)


def adaptation_findings(adaptation: pd.DataFrame) -> list[str]:
    """Return a sentence for each data set and number of images: what the adapted hypernetwork predicts, and others."""
    findings = []
    for (dataset, number), own in adaptation.groupby(["dataset", "images_per_class"], sort=False):
        rows = own.set_index("start")
        adapted, scratch, alone = (rows.loc[start] for start in (ADAPTED, SCRATCH, ALONE))
        images = "all images" if adapted["is_all"] else f"{count(float(str(number)), 'image')} of each class"
        cost = alone["network_images"] / adapted["network_images"]
        findings.append(
            f"From {images} of {dataset}, the adapted hypernetwork predicts "
            f"{percent(adapted['test_top1'], adapted['test_top1_error'])}% for "
            f"{count(adapted['architectures'], 'network')} that it has never seen; one from scratch "
            f"{percent(scratch['test_top1'], scratch['test_top1_error'])}%; {LABELS[ALONE]} has "
            f"{percent(alone['test_top1'], alone['test_top1_error'])}%, at {cost:.2g} times the cost in images."
        )
    return findings


@matplotlib.rc_context(STYLE)
def adaptation_accuracies(adaptation: pd.DataFrame, width: float = WIDE) -> Figure:
    """Plot mean top-1 with its standard error over seeds against the images per class, a panel a data set.

    Args:
        adaptation: a row for each data set, number of images and start, with the number of classes.
        width: inches.
    """
    datasets = list(dict.fromkeys(adaptation["dataset"]))
    figure, panels = panel_grid(len(datasets), width, 2.2)
    for axes, dataset in zip(panels, datasets, strict=True):
        of_dataset = adaptation[adaptation["dataset"] == dataset]
        chance = 1 / of_dataset["classes"].iloc[0]
        for start in reversed(LABELS):
            own = of_dataset[of_dataset["start"] == start].sort_values("images_per_class")
            errors = own["test_top1_error"].fillna(0)  # a single seed has none
            axes.errorbar(
                own["images_per_class"], own["test_top1"], errors, color=COLORS[start], marker="o", markersize=4
            )
        numbers = sorted(of_dataset["images_per_class"].unique())
        axes.set_xscale("log")
        logarithmic_ticks(axes.xaxis, lambda value: f"{value:,.0f}")
        axes.xaxis.set_major_locator(FixedLocator(numbers))
        axes.set_xlim(numbers[0] / 1.5, numbers[-1] * 1.5)
        axes.set_title(dataset)
        chance_line(axes.axhline, chance)
        accuracy_axis(axes.yaxis, axes.set_ylim, max(of_dataset["test_top1"].max(), chance))
    figure.supxlabel("training images per class", fontsize=8.5, color=MUTED)
    figure.supylabel("top-1, %", fontsize=8.5, color=MUTED)
    add_legend(figure, [*(dot_handle(COLORS[start], label) for start, label in LABELS.items()), chance_handle(None)])
    return figure
