from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline import plots
from pipeline.measurements import read_measurements


@pytest.mark.parametrize("width", [plots.WIDE, plots.NARROW])
def test_the_accuracy_plot_prints_the_mean_of_each_split(results_of_a_run: Path, width: float) -> None:
    results = read_measurements(results_of_a_run)
    (axes,) = plots.accuracy_by_split(results.architectures, results.chance, width).axes
    printed = [text.get_text() for text in axes.texts]
    means = results.accuracy[["predicted_top1", "random_top1"]].to_numpy().ravel()
    assert printed == [f"{100 * mean:.1f}" for mean in means]
    assert axes.get_yticklabels()[0].get_text() == "test\nn = 100"


def test_each_drop_of_the_learning_rate_is_marked(results_of_a_run: Path) -> None:
    results = read_measurements(results_of_a_run)
    loss, _ = plots.training_curves(results.history, results.chance).axes
    vertical = [line.get_xdata()[0] for line in loss.lines if len(set(line.get_xdata())) == 1]
    assert vertical == [2011, 2491]


def test_a_huge_loss_is_cut_off_and_printed(results_of_a_run: Path) -> None:
    results = read_measurements(results_of_a_run)
    history = results.history.copy()
    history.loc[5, "loss"] = 480.0
    loss, _ = plots.training_curves(history, results.chance).axes
    assert loss.get_ylim()[1] < 5
    assert loss.texts[0].get_text() == "highest: 480, not shown"


def test_the_parts_of_a_step_add_up_to_the_step(results_of_a_run: Path) -> None:
    history = read_measurements(results_of_a_run).history
    parts = plots.step_parts(history)
    assert sum(parts.values()) == pytest.approx(history["step_seconds"].mean())
    (axes,) = plots.time_of_a_step(history).axes
    assert axes.patches[-1].get_x() + axes.patches[-1].get_width() == pytest.approx(sum(parts.values()))


def test_smoothing_keeps_a_constant_curve_and_its_length() -> None:
    values = pd.Series(np.full(250, 0.3))
    window = plots.smoothing_window(len(values))
    assert window == 5
    np.testing.assert_allclose(plots.smoothed(values, window), values)


def test_a_single_run_of_one_step_can_be_drawn(results_of_a_run: Path) -> None:
    results = read_measurements(results_of_a_run)
    plots.training_curves(results.history[:1], results.chance)
    plots.time_of_a_step(results.history[:1])
    one_run = results.curves.query("architecture == 0 and seed == 0 and dataset == 'digits'")
    (axes,) = plots.finetuning_curves(one_run, {"digits": 0.1}).axes
    assert axes.get_title(loc="left") == "digits"


def test_an_svg_takes_its_colours_from_the_page_and_has_identifiers_of_its_own(results_of_a_run: Path) -> None:
    history = read_measurements(results_of_a_run).history
    first, second = (plots.inline_svg(plots.time_of_a_step(history), name, 'a "b" <c>') for name in ("x", "y"))
    assert not re.search(r"#[0-9a-f]{6}\b", first)
    assert "var(--predicted)" in first
    assert 'aria-label="a &quot;b&quot; &lt;c>"' in first
    identifiers = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (first, second)]
    assert identifiers[0] and not identifiers[0] & identifiers[1]
    references = set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', first))
    assert references <= identifiers[0]
