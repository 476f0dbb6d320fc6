"""The figures about a training run, in the style of `pipeline.reporting.plots`.

Each takes a width in inches and returns a figure. A history has a row for each step, or for several, with their means
and the last one's number as `step`.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from pipeline.reporting.plots import (
    INK,
    MUTED,
    PREDICTED,
    RANDOM,
    STYLE,
    WIDE,
    accuracy_axis,
    chance_handle,
    chance_line,
    legend_of,
    panel_grid,
    print_right,
)

TIME_PARTS = {
    "wait_seconds": "waiting for data",
    "hypernetwork_forward_seconds": "hypernetwork forward",
    "target_forward_seconds": "target networks forward",
    "target_backward_seconds": "target networks backward",
    "hypernetwork_backward_seconds": "hypernetwork backward",
    "communication_seconds": "communication",
}
"""The measured parts of a step, in the order in which they happen."""

RAW_POINTS = 1500  # more points of a raw curve are not told apart at this size
MARKED_POINTS = 60  # more validations are a line without points

RAW = {"color": PREDICTED, "alpha": 0.28, "linewidth": 0.7}
SMOOTH = {"color": PREDICTED, "linewidth": 1.6}
VALIDATION_STYLE = {"color": INK, "linewidth": 1.0, "marker": "o"}
KEPT = {"color": INK, "marker": "o", "markersize": 7.5, "markerfacecolor": "none", "linewidth": 0}
DROP = {"color": MUTED, "linewidth": 0.8, "dashes": (2, 3)}
LIMIT = {"color": INK, "linewidth": 0.9, "dashes": (4, 3)}

NORMS = {
    "max": ("largest", {"color": RANDOM, "linewidth": 1.0}),
    "p90": ("90th percentile", {"color": MUTED, "linewidth": 1.0}),
    "median": ("median", SMOOTH),
}
"""What a history has of the norms of single architectures' gradients: `architecture_norm_max` and so on."""


@matplotlib.rc_context(STYLE)
def training_curves(
    history: pd.DataFrame, chance: float, drops: Sequence[float], kept: int | None, width: float = WIDE
) -> Figure:
    """Loss and top-1 of the meta-batches over the steps, raw in light and smoothed in dark, and those of validation.

    `history` has step, loss and top1 (a row without loss leaves a gap), and val_loss and val_top1, empty where there
    was no validation, if there was any. `drops` are steps at which the learning rate drops; `kept` is that of the
    weights that are kept.
    """
    panels = panel_grid(2, width, height=2.3)
    validated = "val_top1" in history
    val_loss, val_top1 = (history.get(column, pd.Series(dtype=float)) for column in ("val_loss", "val_top1"))
    for axes, column, title in zip(panels, ("loss", "top1"), ("Loss", "Top-1, %"), strict=True):
        _curve(axes, history, column)
        if validated:
            _validation_curve(axes, history, f"val_{column}", kept)
        for step in drops:
            axes.axvline(step, **DROP)
        _over_steps(axes, title)
    loss, top1 = panels
    _keep_outliers_out(loss, history["loss"], val_loss)
    accuracy_axis(top1.yaxis, top1.set_ylim, np.nanmax([history["top1"].max(), val_top1.max(), chance]))
    chance_line(top1.axhline, chance)
    handles = _curve_handles(history)
    if validated:
        handles.append(Line2D([], [], label="validation", markersize=2.8, **VALIDATION_STYLE))
        handles.append(Line2D([], [], label="kept", **KEPT))
    if len(drops):
        handles.append(Line2D([], [], label="learning rate drops", **DROP))
    legend_of(loss.figure, [*handles, chance_handle(chance)])
    return loss.figure


@matplotlib.rc_context(STYLE)
def gradient_norms(history: pd.DataFrame, clip: float, architecture_clip: float | None, width: float = WIDE) -> Figure:
    """Norms of gradients over the steps before they are clipped, on logarithmic scales: of the whole gradient, and how
    those of single architectures are distributed, smoothed.

    `history` has step, gradient_norm, architecture_norm_median, architecture_norm_p90 and architecture_norm_max; a norm
    that is missing or 0 leaves a gap. `clip` and `architecture_clip` are the largest norms that are not clipped.
    """
    panels = panel_grid(2, width, height=2.3)
    whole, single = panels
    norms = history.filter(like="norm").where(lambda norm: norm > 0)  # 0 if no architecture counted
    norms["step"] = history["step"]
    window = smoothing_window(len(norms))
    _curve(whole, norms, "gradient_norm")
    for name, (_, style) in NORMS.items():
        single.plot(norms["step"], smoothed(norms[f"architecture_norm_{name}"], window), **style)
    titles = ("Norm of the whole gradient", "Norms of single architectures")
    for axes, limit, title in zip(panels, (clip, architecture_clip), titles, strict=True):
        if limit is not None:
            axes.axhline(limit, zorder=1.5, **LIMIT)
        _over_steps(axes, title)
        _logarithmic(axes)
    handles = [Line2D([], [], label=label, **style) for label, style in reversed(NORMS.values())]
    if window > 1:
        handles.insert(0, _curve_handles(norms)[0])
    legend_of(whole.figure, [*handles, Line2D([], [], label="clipped above", **LIMIT | {"dashes": (2.5, 2)})])
    return whole.figure


@matplotlib.rc_context(STYLE)
def time_of_a_step(history: pd.DataFrame, width: float = WIDE) -> Figure:
    """The mean step's seconds, part after part, each beginning where the one before it ends.

    `history` has step_seconds and the columns of `TIME_PARTS`; what they leave is shown as `other`.
    """
    parts = step_parts(history)
    total = sum(parts.values())
    narrow = width < 5
    figure = Figure(figsize=(width, 0.55 + (0.4 if narrow else 0.3) * len(parts)), layout="constrained")
    axes = figure.subplots()
    start = 0.0
    for row, (name, seconds) in enumerate(parts.items()):
        axes.barh(row, seconds, left=start, height=0.62, color=RANDOM if name == "other" else PREDICTED)
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
    """The seconds of a mean step, by part; `other` is what the measured parts leave."""
    parts = {name: float(history[column].mean()) for column, name in TIME_PARTS.items()}
    # Parts are measured by different workers and may overlap: never less than nothing is left.
    return {**parts, "other": max(0.0, float(history["step_seconds"].mean()) - sum(parts.values()))}


def learning_rate_drops(history: pd.DataFrame) -> list[int]:
    """The steps at which a learning rate that is constant otherwise drops."""
    rates = history["learning_rate"]
    falls = rates < 0.999 * rates.shift()  # means of equal rates differ in the last digits
    # A row with the mean of steps before and after it lies between them: a drop is two falls then.
    return history["step"][falls & ~falls.shift(fill_value=False)].astype(int).tolist()


def smoothing_window(rows: int) -> int:
    """Over how many rows of a history it is smoothed: 2 % of them, an odd number."""
    return 2 * (rows // 100) + 1


def smoothed(values: pd.Series, window: int) -> pd.Series:
    """The medians of the `window` values around each one; of fewer at the ends.

    Not the means: one network whose loss explodes would lift the curve for a whole window.
    """
    return values.rolling(window, center=True, min_periods=1).median()


def smoothing_steps(history: pd.DataFrame) -> int:
    """Over how many steps the curves are smoothed."""
    return smoothing_window(len(history)) * steps_a_row(history)


def steps_a_row(history: pd.DataFrame) -> int:
    """How many steps a row of a history has the means of."""
    return int(history["step"].diff().median()) if len(history) > 1 else int(history["step"].iloc[0])


def short_seconds(seconds: float) -> str:
    """A time of less than a minute: 0.12 s, 34 ms, 0.5 ms."""
    if seconds < 9.5e-4:
        return f"{1000 * seconds:.1g} ms"
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{1000 * seconds:.0f} ms"


def _curve(axes: Axes, history: pd.DataFrame, column: str) -> None:
    window, every = smoothing_window(len(history)), max(1, len(history) // RAW_POINTS)
    if window > 1:
        axes.plot(history["step"][::every], history[column][::every], **RAW)
    axes.plot(history["step"], smoothed(history[column], window), **SMOOTH)


def _curve_handles(history: pd.DataFrame) -> list[Line2D]:
    window, steps = smoothing_window(len(history)), steps_a_row(history)
    row = "each step" if steps == 1 else f"mean of {steps:,} steps"
    if window == 1:
        return [Line2D([], [], label=row, **SMOOTH)]
    dark = Line2D([], [], label=f"median of {smoothing_steps(history):,} steps", **SMOOTH)
    return [Line2D([], [], label=row, **RAW | {"alpha": 0.4, "linewidth": 0.8}), dark]


def _validation_curve(axes: Axes, history: pd.DataFrame, column: str, kept: int | None) -> None:
    validated = history[history[column].notna()]
    size = 2.8 if len(validated) <= MARKED_POINTS else 0.0
    axes.plot(validated["step"], validated[column], markersize=size, **VALIDATION_STYLE)
    if kept is not None:
        row = history[history["step"] >= kept][:1]  # the one that has its means
        axes.plot(row["step"], row[column], zorder=3, **KEPT)


def _over_steps(axes: Axes, title: str) -> None:
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.margins(x=0.02)  # wide enough for a ring around the last step


def _keep_outliers_out(axes: Axes, raw: pd.Series, validation: pd.Series) -> None:
    """A few huge losses would press the curve flat: they are cut off, and the highest is printed."""
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
    """Makes the y-axis logarithmic, with ticks at powers of ten, or at 1, 2 and 5 of each where there are few."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1,) if high / low > 150 else (1, 2, 5), numticks=7))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short_power(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_locator(NullLocator())


def _short_power(value: float) -> str:
    if 1e-3 <= value < 1e4:
        return f"{value:,g}"
    digits, exponent = f"{value:.0e}".split("e")
    power = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return power if digits == "1" else f"{digits}·{power}"


def _in_two_lines(name: str) -> str:
    """The last of several words goes below the others."""
    return "\n".join(name.rsplit(" ", 1))
