"""The table, the sentences and the figures about detectors on predicted backbones."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from pipeline.console import percent
from pipeline.evaluation.detection_tables import FoundBoxes, ShownDetections
from pipeline.evaluation.initialisations import BASELINE
from pipeline.reporting.cells import learning_rate_cell, points
from pipeline.reporting.numbers import MINUS_SIGN, listing
from pipeline.reporting.page import Table
from pipeline.reporting.plots import STYLE, WIDE, accuracy_axis, add_legend, dot_handle, panel_grid
from pipeline.reporting.theme import INK, MUTED, SERIES_COLORS

SHOWN_SCORE = 0.3
"""Detections with a lower score are not drawn."""

RIGHT_OVERLAP = 0.5
"""The overlap (intersection over union) from which a box is in the right place."""

RIGHT, WRONG = SERIES_COLORS[3], SERIES_COLORS[2]


def detection_table(detection: pd.DataFrame, labels: Mapping[str, str]) -> Table:
    """Return a row for each backbone and initialisation.

    Args:
        detection: the summary, a row for each of them.
        labels: those of the initialisations by name.
    """
    early = f"AP50 after epoch {detection['early_epoch'].iloc[0]}, %"
    columns = ("backbone", "initialisation", "learning rate", early, f"{MINUS_SIGN} {BASELINE}")
    rows = [
        (
            row["backbone"],
            labels[row["initialisation"]],
            learning_rate_cell(row),
            percent(row["early_ap50"], row["early_ap50_error"]),
            "" if pd.isna(row["early_difference"]) else _early(row),
            percent(row["ap50"], row["ap50_error"]),
            percent(row["ap"], row["ap_error"]),
        )
        for row in detection.to_dict("records")
    ]
    return Table((*columns, "AP50 at the end, %", "AP at the end, %"), rows, words=2)


def _early(row: Mapping[str, float]) -> str:
    return points(row["early_difference"], row["early_difference_error"])


def detection_findings(detection: pd.DataFrame, labels: Mapping[str, str]) -> list[str]:
    """Return a sentence for each backbone: how far initialisations are ahead of random after a third and at the end."""
    findings = []
    for backbone, own in detection.groupby("backbone", sort=False):
        rows = own.set_index("initialisation")
        random = rows.loc[BASELINE]
        others = [
            f"{_early(row)} points with {labels[str(name)]} (at the end {points(row['ap50'] - random['ap50'])})"
            for name, row in rows.drop(index=BASELINE).iterrows()
        ]
        early = percent(random["early_ap50"], random["early_ap50_error"])
        findings.append(
            f"On {backbone}, AP50 from {labels[BASELINE]} is {early}% after epoch {random['early_epoch']} of "
            f"{random['epochs']}; the difference is {listing(others)}."
        )
    return findings


@matplotlib.rc_context(STYLE)
def detection_curves(curves: pd.DataFrame, labels: Mapping[str, str], width: float = WIDE) -> Figure:
    """Plot AP50 over the epochs, mean and standard error over seeds, a panel a backbone.

    Args:
        curves: a row for each backbone, initialisation, seed and epoch.
        labels: those of the initialisations by name.
        width: inches.
    """
    backbones = list(dict.fromkeys(curves["backbone"]))
    colors = dict(zip(labels, SERIES_COLORS, strict=False))
    figure, panels = panel_grid(len(backbones), width, 2.2)
    for axes, backbone in zip(panels, backbones, strict=True):
        for name, color in reversed(colors.items()):
            own = curves[(curves["backbone"] == backbone) & (curves["initialisation"] == name)]
            precision = own.groupby("epoch")["ap50"]
            axes.errorbar(
                precision.mean().index,
                precision.mean(),
                precision.sem().fillna(0),  # a single seed has none
                color=color,
                marker="o",
                markersize=3.5,
                linewidth=1.4,
            )
        axes.set_title(backbone)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        accuracy_axis(axes.yaxis, axes.set_ylim, max(curves["ap50"].max(), 0.1))
    figure.supxlabel("epoch", fontsize=8.5, color=MUTED)
    figure.supylabel("AP50, %", fontsize=8.5, color=MUTED)
    add_legend(figure, [dot_handle(color, labels[name]) for name, color in colors.items()])
    return figure


@matplotlib.rc_context(STYLE)
def detected_scenes(shown: ShownDetections, backbone: str, labels: Mapping[str, str], width: float = WIDE) -> Figure:
    """Draw scenes with what is found in them: a row for each initialisation, a column for each scene.

    Args:
        shown: scenes and detections.
        backbone: that of the detectors.
        labels: those of the initialisations by name.
        width: inches.
    """
    found = shown["found"][backbone]
    columns = min(len(shown["scenes"]), 5 if width > 5 else 2)
    names = [name for name in labels if name in found]
    side = width / (columns + 0.1)
    figure = Figure(figsize=(width, (side + 0.1) * len(names)), layout="constrained")
    grid = figure.subplots(len(names), columns, squeeze=False)
    for row, name in zip(grid, names, strict=True):
        for axes, scene, boxes in zip(row, shown["scenes"], found[name], strict=False):
            picture = imread(io.BytesIO(base64.b64decode(scene["png"])))
            axes.imshow(picture, interpolation="nearest", extent=(0, picture.shape[1], picture.shape[0], 0))
            axes.set_axis_off()
            _draw_boxes(axes, boxes, scene["boxes"], scene["labels"], shown["classes"])
        row[0].set_title(labels[name], fontsize=8, color=INK)
    return figure


def _draw_boxes(
    axes: Axes,
    found: FoundBoxes,
    true_boxes: Sequence[Sequence[float]],
    true_labels: Sequence[int],
    classes: Sequence[str],
) -> None:
    for box, label, score in zip(*found, strict=True):
        if score < SHOWN_SCORE:
            continue
        is_right = any(
            label == true_label and overlap(box, true_box) >= RIGHT_OVERLAP
            for true_box, true_label in zip(true_boxes, true_labels, strict=True)
        )
        color = RIGHT if is_right else WRONG
        left, top, right, bottom = box
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=color, linewidth=1.1))
        axes.text(left + 1, top - 1, classes[label], color=color, fontsize=7, va="bottom", clip_on=True)


def overlap(box: Sequence[float], other: Sequence[float]) -> float:
    """Return the intersection of two boxes over their union."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
    return width * height / (areas - width * height)
