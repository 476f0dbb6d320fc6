from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pipeline.reporting import training_plots
from pipeline.reporting.numbers import short_seconds
from pipeline.reporting.plots import NARROW, WIDE
from pipeline.reporting.read_results import read_results
from pipeline.training.history import NORM_QUANTILES

CHANCE = 0.1
WITHOUT = ["val_top1", "val_loss"]


@pytest.fixture(scope="module")
def measured(results_of_a_run: Path) -> pd.DataFrame:
    return read_results(results_of_a_run).history


@pytest.fixture
def history(measured: pd.DataFrame) -> pd.DataFrame:
    """Return a copy that a test may change."""
    return measured.copy()


def labels(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def rings(axes: Axes) -> list[tuple[float, float]]:
    """Return where the marks of kept weights are."""
    return [tuple(line.get_xydata()[0]) for line in axes.lines if line.get_markerfacecolor() == "none"]


def line_with_points(axes: Axes) -> Line2D:
    (line,) = [line for line in axes.lines if line.get_marker() == "o" and line.get_linewidth() > 0]
    return line


def averaged(history: pd.DataFrame, rows: int) -> pd.DataFrame:
    """Return the history that the same run leaves if a row has the mean of `rows` steps."""
    groups = np.arange(len(history)) // rows
    return history.groupby(groups).mean().assign(step=history.groupby(groups)["step"].max())


# Loss and accuracy


def test_each_drop_of_the_learning_rate_is_found_and_marked(history: pd.DataFrame) -> None:
    drops = training_plots.learning_rate_drops(history)
    assert drops == [2011, 2491]
    figure = training_plots.training_curves(history, CHANCE, drops, None)
    for axes in figure.axes:
        vertical = [line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1]
        assert vertical == drops
    assert "learning rate drops" in labels(figure)


def test_a_drop_within_the_steps_of_a_row_is_one(history: pd.DataFrame) -> None:
    assert training_plots.learning_rate_drops(averaged(history, 100)) == [2100, 2500]


def test_a_learning_rate_that_rises_or_stays_has_no_drops(history: pd.DataFrame) -> None:
    rate = 1e-3 * np.minimum(1, history["step"] / 100)
    drops = training_plots.learning_rate_drops(averaged(history.assign(learning_rate=rate), 7))
    assert drops == []
    assert "learning rate drops" not in labels(training_plots.training_curves(history, CHANCE, drops, None))


def test_validation_is_plotted_where_it_was_and_the_kept_step_is_ringed(history: pd.DataFrame) -> None:
    validated = history[history["val_top1"].notna()]
    best = int(validated["step"][validated["val_top1"].idxmax()])
    figure = training_plots.training_curves(history, CHANCE, [], best)
    for axes, column in zip(figure.axes, ("val_loss", "val_top1"), strict=True):
        np.testing.assert_array_equal(line_with_points(axes).get_xydata(), validated[["step", column]])
        assert rings(axes) == [(best, validated[column][validated["step"] == best].item())]
    assert {"validation", "kept"} <= set(labels(figure))


def test_without_validation_nothing_of_it_is_plotted(history: pd.DataFrame) -> None:
    figure = training_plots.training_curves(history.drop(columns=WITHOUT), CHANCE, [], None)
    assert not [line for axes in figure.axes for line in axes.lines if line.get_marker() == "o"]
    assert not {"validation", "kept"} & set(labels(figure))


def test_the_ring_is_around_the_row_that_has_the_kept_step(history: pd.DataFrame) -> None:
    rows = averaged(history, 100)
    _, top1 = training_plots.training_curves(rows, CHANCE, [], 2750).axes
    assert rings(top1) == [(2800, history["val_top1"][history["step"] == 2750].item())]


def test_a_validation_loss_that_is_missing_leaves_the_others_connected(history: pd.DataFrame) -> None:
    history.loc[history["step"] == 500, "val_loss"] = np.nan
    loss, top1 = training_plots.training_curves(history, CHANCE, [], 500).axes
    assert 500 not in line_with_points(loss).get_xdata()
    assert np.isfinite(line_with_points(loss).get_ydata()).all()
    assert 500 in line_with_points(top1).get_xdata()


def test_many_validations_are_a_line_without_points(history: pd.DataFrame) -> None:
    history["val_top1"] = history["val_loss"] = history["top1"]
    _, top1 = training_plots.training_curves(history, CHANCE, [], 10).axes
    assert line_with_points(top1).get_markersize() == 0


@pytest.mark.parametrize("column", ["loss", "val_loss"])
def test_a_huge_loss_is_cut_off_and_printed(history: pd.DataFrame, column: str) -> None:
    history.loc[history["step"] == 250, column] = 480.0
    loss, _ = training_plots.training_curves(history, CHANCE, [], 250).axes
    assert loss.get_ylim()[1] < 5
    assert loss.texts[0].get_text() == "highest: 480, not shown"


def test_where_one_loss_in_nine_explodes_the_smoothed_curve_is_shown_whole(history: pd.DataFrame) -> None:
    history.loc[::9, "loss"] = 50.0
    history["loss"] += 8 * np.exp(-history["step"] / 60)  # the first steps are far above the others
    loss, _ = training_plots.training_curves(history, CHANCE, [], None).axes
    smooth = training_plots.smoothed(history["loss"], training_plots.smoothing_window(len(history)))
    assert 8 < smooth.max() < loss.get_ylim()[1] < 15


def test_validation_above_training_is_in_sight(history: pd.DataFrame) -> None:
    history["val_loss"] += 1.5
    history.loc[0, "loss"] = 480.0
    loss, _ = training_plots.training_curves(history, CHANCE, [], None).axes
    assert loss.get_ylim()[1] > history["val_loss"].max()


def test_the_legend_says_what_a_row_and_a_curve_are(history: pd.DataFrame) -> None:
    every_step = training_plots.training_curves(history, CHANCE, [], None)
    assert labels(every_step)[:2] == ["each step", "median of 61 steps"]
    long = pd.concat([averaged(history, 10)] * 2, ignore_index=True)
    long["step"] = 10 * np.arange(1, len(long) + 1)
    assert labels(training_plots.training_curves(long, CHANCE, [], None))[:2] == [
        "mean of 10 steps",
        "median of 130 steps",
    ]
    few = training_plots.training_curves(history[:40], CHANCE, [], None)
    assert [label for label in labels(few) if "step" in label] == ["each step"]


# Gradients


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_limits_of_norms_are_lines_in_their_panels(history: pd.DataFrame, width: float) -> None:
    whole, single = training_plots.gradient_norms(history, 5.0, 1.0, width).axes
    for axes, limit in ((whole, 5.0), (single, 1.0)):
        horizontal = [line.get_ydata()[0] for line in axes.lines if len(set(line.get_ydata())) == 1]
        assert horizontal == [limit]
        assert axes.get_yscale() == "log"
        assert axes.get_ylim()[0] < limit < axes.get_ylim()[1]


def test_norms_of_single_architectures_need_no_limit(history: pd.DataFrame) -> None:
    figure = training_plots.gradient_norms(history, 5.0, None)
    _, single = figure.axes
    assert len(single.lines) == len(NORM_QUANTILES)
    assert labels(figure) == ["each step", "median", "90th percentile", "largest", "clipped above"]


def test_norms_are_those_of_the_history(history: pd.DataFrame) -> None:
    few = history[:40]  # not smoothed
    whole, single = training_plots.gradient_norms(few, 5.0, None).axes
    np.testing.assert_allclose(whole.lines[0].get_ydata(), few["gradient_norm"])
    for line, name in zip(single.lines, ("max", "p90", "median"), strict=True):
        np.testing.assert_allclose(line.get_ydata(), few[f"architecture_norm_{name}"])


def test_a_step_that_dropped_all_its_architectures_leaves_a_gap_in_the_norms(history: pd.DataFrame) -> None:
    few = history[:40].copy()
    few.loc[7, list(few.filter(like="architecture_norm"))] = np.nan
    few.loc[7, "gradient_norm"] = 0.0
    figure = training_plots.gradient_norms(few, 5.0, 1.0)
    figure.draw_without_rendering()
    for axes in figure.axes:
        assert np.isnan(axes.lines[0].get_ydata()[7])
        assert np.isfinite(axes.get_ylim()).all()


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.6, 4.0, ["1", "2", "5"]),
        (0.5, 8000.0, ["1", "10", "100", "1,000"]),
        (3e-6, 2e5, ["10⁻⁶", "10⁻⁴", "0.01", "1", "100", "10⁴"]),
    ],
)
def test_ticks_of_norms_can_be_read(history: pd.DataFrame, low: float, high: float, ticks: list[str]) -> None:
    few = history[:40].assign(gradient_norm=np.geomspace(low, high, 40))
    figure = training_plots.gradient_norms(few, 5.0, None)
    figure.draw_without_rendering()
    whole, _ = figure.axes
    bottom, top = whole.get_ylim()
    shown = [
        label.get_text()
        for position, label in zip(whole.get_yticks(), whole.get_yticklabels(), strict=True)
        if bottom <= position <= top
    ]
    assert set(ticks) <= set(shown)
    assert len(shown) <= 8


# The time of a step


def test_the_parts_of_a_step_add_up_to_the_step(history: pd.DataFrame) -> None:
    parts = training_plots.step_parts(history)
    assert list(parts) == [*training_plots.PART_NAMES.values(), "other"]
    assert sum(parts.values()) == pytest.approx(history["step_seconds"].mean())
    (axes,) = training_plots.time_of_a_step(history).axes
    assert axes.patches[-1].get_x() + axes.patches[-1].get_width() == pytest.approx(sum(parts.values()))


def test_graphs_in_the_background_are_no_part_of_a_step(history: pd.DataFrame) -> None:
    assert training_plots.step_parts(history) == training_plots.step_parts(history.assign(graph_seconds=100.0))


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_bars_have_a_third_of_the_width_beside_their_names(history: pd.DataFrame, width: float) -> None:
    figure = training_plots.time_of_a_step(history, width)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert axes.get_position().width > 1 / 3
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert all(below.y1 < above.y0 for above, below in pairwise(boxes))


@pytest.mark.parametrize(
    ("seconds", "text"), [(1.234, "1.23 s"), (0.1, "0.10 s"), (0.034, "34 ms"), (0.001, "1 ms"), (0.00042, "0.4 ms")]
)
def test_times_are_short(seconds: float, text: str) -> None:
    assert short_seconds(seconds) == text


# Any history


def test_smoothing_keeps_a_constant_curve_and_its_length() -> None:
    values = pd.Series(np.full(250, 0.3))
    window = training_plots.smoothing_window(len(values))
    assert window == 5
    np.testing.assert_allclose(training_plots.smoothed(values, window), values)


@pytest.mark.parametrize("without", [[], ["loss", "top1", "gradient_norm", "architecture_norm_median"]])
def test_a_run_of_one_step_can_be_plotted_even_if_it_dropped_everything(
    history: pd.DataFrame, without: list[str]
) -> None:
    one = history[:1].copy()
    one[without] = np.nan
    for figure in (
        training_plots.training_curves(one, CHANCE, [], None),
        training_plots.gradient_norms(one, 5.0, 1.0),
        training_plots.time_of_a_step(one),
    ):
        figure.draw_without_rendering()
        assert any(axes.has_data() for axes in figure.axes)
