"""Figures about a training run.

A history has a row for each step, or for several steps with their means and the last one's number as `step`; its
columns are those of `pipeline.training.tables`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, StrMethodFormatter

from pipeline.reporting.numbers import short_seconds
from pipeline.reporting.plots import (
    REFERENCE_HANDLE,
    REFERENCE_LINE,
    STYLE,
    WIDE,
    accuracy_axis,
    add_legend,
    chance_handle,
    chance_line,
    logarithmic_ticks,
    panel_grid,
    print_right,
)
from pipeline.reporting.theme import ACCENT, COMPARED, INK, MUTED
from pipeline.training.history import NORM_QUANTILES
from pipeline.training.tables import TIME_PARTS

PART_NAMES = dict(
    zip(
        TIME_PARTS,
        (
            "waiting for data",
            "hypernetwork forward",
            "target networks forward",
            "target networks backward",
            "hypernetwork backward",
            "communication",
        ),
        strict=True,
    )
)
"""The names of the measured parts of a step, by column, in the order in which they happen."""

MAX_RAW_POINTS = 1500  # more points of a raw curve cannot be told apart at this size
MAX_MARKED_POINTS = 60  # more validations are a line without points

RAW_STYLE: dict[str, Any] = {"color": ACCENT, "alpha": 0.28, "linewidth": 0.7}
SMOOTH_STYLE: dict[str, Any] = {"color": ACCENT, "linewidth": 1.6}
VALIDATION_STYLE: dict[str, Any] = {"color": INK, "linewidth": 1.0, "marker": "o"}
KEPT_STYLE: dict[str, Any] = {
    "color": INK,
    "marker": "o",
    "markersize": 7.5,
    "markerfacecolor": "none",
    "linewidth": 0,
}
RATE_DROP_STYLE: dict[str, Any] = {"color": MUTED, "linewidth": 0.8, "dashes": (2, 3)}

QUANTILE_STYLES: dict[str, tuple[str, dict[str, Any]]] = dict(
    zip(
        reversed(NORM_QUANTILES),
        (
            ("largest", {"color": COMPARED, "linewidth": 1.0}),
            ("90th percentile", {"color": MUTED, "linewidth": 1.0}),
            ("median", SMOOTH_STYLE),
        ),
        strict=True,
    )
)
"""Label and style of each statistic of the norms of single architectures' gradients."""


@matplotlib.rc_context(STYLE)
def training_curves(
    history: pd.DataFrame, chance: float, drops: Sequence[float], kept: int | None, width: float = WIDE
) -> Figure:
    """Plot loss and top-1 over the steps, raw in light and smoothed in dark, and those of validation.

    Args:
        history: a row without loss leaves a gap. The columns of validation may be missing.
        chance: the chance level.
        drops: the steps at which the learning rate drops.
        kept: the step of the weights that are kept, if validation has chosen it.
        width: inches.
    """
    figure, panels = panel_grid(2, width, height=2.3)
    validated = "val_top1" in history
    val_loss, val_top1 = (history.get(column, pd.Series(dtype=float)) for column in ("val_loss", "val_top1"))
    for axes, column, title in zip(panels, ("loss", "top1"), ("Loss", "Top-1, %"), strict=True):
        _curve(axes, history, column)
        if validated:
            _validation_curve(axes, history, f"val_{column}", kept)
        for step in drops:
            axes.axvline(step, **RATE_DROP_STYLE)
        _over_steps(axes, title)
    loss, top1 = panels
    _keep_outliers_out(loss, history["loss"], val_loss)
    accuracy_axis(top1.yaxis, top1.set_ylim, np.nanmax([history["top1"].max(), val_top1.max(), chance]))
    chance_line(top1.axhline, chance)
    handles = _curve_handles(history)
    if validated:
        handles.append(Line2D([], [], label="validation", markersize=2.8, **VALIDATION_STYLE))
        handles.append(Line2D([], [], label="kept", **KEPT_STYLE))
    if len(drops):
        handles.append(Line2D([], [], label="learning rate drops", **RATE_DROP_STYLE))
    add_legend(figure, [*handles, chance_handle(chance)])
    return figure


@matplotlib.rc_context(STYLE)
def gradient_norms(history: pd.DataFrame, clip: float, architecture_clip: float | None, width: float = WIDE) -> Figure:
    """Plot norms of gradients before clipping over the steps, of the whole gradient and of single architectures.

    Scales are logarithmic; the norms of single architectures are smoothed.

    Args:
        history: a norm that is missing or 0 leaves a gap.
        clip: the largest norm of the whole gradient that is not clipped.
        architecture_clip: the largest norm of one architecture's gradient that is not clipped, if any is.
        width: inches.
    """
    figure, panels = panel_grid(2, width, height=2.3)
    whole, single = panels
    norms = history.filter(like="norm").where(lambda norm: norm > 0)  # 0 if no architecture counted
    norms["step"] = history["step"]
    window = smoothing_window(len(norms))
    _curve(whole, norms, "gradient_norm")
    for name, (_, style) in QUANTILE_STYLES.items():
        single.plot(norms["step"], smoothed(norms[f"architecture_norm_{name}"], window), **style)
    titles = ("Norm of the whole gradient", "Norms of single architectures")
    for axes, limit, title in zip(panels, (clip, architecture_clip), titles, strict=True):
        if limit is not None:
            axes.axhline(limit, zorder=1.5, **REFERENCE_LINE)
        _over_steps(axes, title)
        _logarithmic(axes)
    handles = [Line2D([], [], label=label, **style) for label, style in reversed(QUANTILE_STYLES.values())]
    if window > 1:
        handles.insert(0, _curve_handles(norms)[0])
    add_legend(figure, [*handles, Line2D([], [], label="clipped above", **REFERENCE_HANDLE)])
    return figure


@matplotlib.rc_context(STYLE)
def time_of_a_step(history: pd.DataFrame, width: float = WIDE) -> Figure:
    """Plot the seconds of a mean step, part after part, each beginning where the one before it ends.

    The time that is in no measured part is shown as `other`.
    """
    parts = step_parts(history)
    total = sum(parts.values())
    narrow = width < 5
    figure = Figure(figsize=(width, 0.55 + (0.4 if narrow else 0.3) * len(parts)), layout="constrained")
    axes = figure.subplots()
    start = 0.0
    for row, (name, seconds) in enumerate(parts.items()):
        axes.barh(row, seconds, left=start, height=0.62, color=COMPARED if name == "other" else ACCENT)
        print_right(axes, row, f"{seconds / total:.0%}", 30, INK)
        print_right(axes, row, short_seconds(seconds), 72, MUTED)
        start += seconds
    axes.set_yticks(range(len(parts)), [_in_two_lines(name) if narrow else name for name in parts])
    axes.tick_params(axis="y", labelcolor=INK, pad=6)
    axes.set_ylim(len(parts) - 0.4, -0.6)
    axes.set_xlim(0, total)
    axes.xaxis.set_major_locator(MaxNLocator(3 if narrow else 5))
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("seconds of a step")
    return figure


def step_parts(history: pd.DataFrame) -> dict[str, float]:
    """Return the seconds of a mean step, by part; `other` is the time that is in no measured part."""
    parts = {name: float(history[column].mean()) for column, name in PART_NAMES.items()}
    # Different workers measure the parts, so that these may overlap and add up to more than the step.
    return {**parts, "other": max(0.0, float(history["step_seconds"].mean()) - sum(parts.values()))}


def learning_rate_drops(history: pd.DataFrame) -> list[int]:
    """Return the steps at which a learning rate that is constant otherwise drops."""
    rates = history["learning_rate"]
    falls = rates < 0.999 * rates.shift()  # means of equal rates differ in the last digits
    # A row with the mean of steps before and after a drop lies between them: the drop is two falls then.
    return history["step"][falls & ~falls.shift(fill_value=False)].astype(int).tolist()


def smoothing_window(rows: int) -> int:
    """Return the number of rows over which a history is smoothed: 2 % of them, an odd number."""
    return 2 * (rows // 100) + 1


def smoothed(values: pd.Series, window: int) -> pd.Series:
    """Return the median of the `window` values around each value, of fewer at the ends.

    Not the means, because one network whose loss explodes would lift the curve for a whole window.
    """
    return values.rolling(window, center=True, min_periods=1).median()


def smoothing_steps(history: pd.DataFrame) -> int:
    """Return the number of steps over which the curves are smoothed."""
    return smoothing_window(len(history)) * steps_per_row(history)


def steps_per_row(history: pd.DataFrame) -> int:
    """Return the number of steps whose means are in a row of a history."""
    return int(history["step"].diff().median()) if len(history) > 1 else int(history["step"].iloc[0])


def _curve(axes: Axes, history: pd.DataFrame, column: str) -> None:
    window, every = smoothing_window(len(history)), max(1, len(history) // MAX_RAW_POINTS)
    if window > 1:
        axes.plot(history["step"][::every], history[column][::every], **RAW_STYLE)
    axes.plot(history["step"], smoothed(history[column], window), **SMOOTH_STYLE)


def _curve_handles(history: pd.DataFrame) -> list[Line2D]:
    window, steps = smoothing_window(len(history)), steps_per_row(history)
    row = "each step" if steps == 1 else f"mean of {steps:,} steps"
    if window == 1:
        return [Line2D([], [], label=row, **SMOOTH_STYLE)]
    dark = Line2D([], [], label=f"median of {smoothing_steps(history):,} steps", **SMOOTH_STYLE)
    return [Line2D([], [], label=row, **RAW_STYLE | {"alpha": 0.4, "linewidth": 0.8}), dark]


def _validation_curve(axes: Axes, history: pd.DataFrame, column: str, kept: int | None) -> None:
    validated = history[history[column].notna()]
    size = 2.8 if len(validated) <= MAX_MARKED_POINTS else 0.0
    axes.plot(validated["step"], validated[column], markersize=size, **VALIDATION_STYLE)
    if kept is not None:
        row = history[history["step"] >= kept][:1]  # the row that has its means
        axes.plot(row["step"], row[column], zorder=3, **KEPT_STYLE)


def _over_steps(axes: Axes, title: str) -> None:
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.margins(x=0.02)  # room for a ring around the last step


def _keep_outliers_out(axes: Axes, raw: pd.Series, validation: pd.Series) -> None:
    """Cut off a few huge losses, which would press the curve flat, and print the highest one."""
    usual = max(raw.quantile(0.8), smoothed(raw, max(5, smoothing_window(len(raw)))).max())
    top = 1.15 * max(usual, validation[validation < 2 * usual].max())
    everything = pd.concat([raw, validation])
    low, high = everything.min(), everything.max()
    if not high > 1.3 * top:
        return
    axes.set_ylim(low - 0.05 * (top - low), top)
    note = f"highest: {high:.3g}, not shown"
    axes.annotate(note, (1, 1), xycoords="axes fraction", ha="right", va="bottom", fontsize=7.5, color=MUTED)


def _logarithmic(axes: Axes) -> None:
    """Make the y-axis logarithmic, with ticks at powers of ten, or at 1, 2 and 5 times each if these are few."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    marks = (1,) if high / low > 150 else (1, 2, 5)
    logarithmic_ticks(axes.yaxis, _short_power, LogLocator(subs=marks, numticks=7))


def _short_power(value: float) -> str:
    """Return a number with at most four digits, or as a power of ten: 0.01, 1,000, 10⁴, 2·10⁻⁶."""
    if 1e-3 <= value < 1e4:
        return f"{value:,g}"
    digits, exponent = f"{value:.0e}".split("e")
    power = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return power if digits == "1" else f"{digits}·{power}"


def _in_two_lines(name: str) -> str:
    """Return the name with the last of several words below the others."""
    return "\n".join(name.rsplit(" ", 1))
