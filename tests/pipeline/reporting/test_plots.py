from __future__ import annotations

import re
from pathlib import Path

import matplotlib
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pipeline.reporting import plots
from pipeline.reporting.read_results import read_results


@pytest.mark.parametrize("width", [plots.WIDE, plots.NARROW])
def test_the_accuracy_plot_prints_the_mean_of_each_split(results_of_a_run: Path, width: float) -> None:
    results = read_results(results_of_a_run)
    (axes,) = plots.accuracy_by_split(results.architectures, results.chance, width).axes
    printed = [text.get_text() for text in axes.texts]
    means = results.accuracy[["predicted_top1", "random_top1"]].to_numpy().ravel()
    assert printed == [f"{100 * mean:.1f}" for mean in means]
    assert axes.get_yticklabels()[0].get_text() == "test\nn = 100"


def test_a_single_run_of_fine_tuning_can_be_drawn(results_of_a_run: Path) -> None:
    results = read_results(results_of_a_run)
    one_run = results.curves.query("architecture == 0 and seed == 0 and dataset == 'digits'")
    (axes,) = plots.finetuning_curves(one_run, {"digits": 0.1}).axes
    assert axes.get_title(loc="left") == "digits"


def test_an_svg_takes_its_colours_from_the_page_and_has_identifiers_of_its_own(results_of_a_run: Path) -> None:
    results = read_results(results_of_a_run)
    figures = (plots.accuracy_by_split(results.architectures, results.chance) for _ in "xy")
    first, second = (plots.inline_svg(figure, name, 'a "b" <c>') for figure, name in zip(figures, "xy", strict=True))
    assert not re.search(r"#[0-9a-f]{6}\b", first)
    assert "var(--predicted)" in first
    assert 'aria-label="a &quot;b&quot; &lt;c>"' in first
    identifiers = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (first, second)]
    assert identifiers[0] and not identifiers[0] & identifiers[1]
    references = set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', first))
    assert references <= identifiers[0]


def test_a_legend_that_is_too_long_for_one_row_has_two() -> None:
    @matplotlib.rc_context(plots.STYLE)
    def rows(labels: list[str], width: float) -> int:
        figure = Figure(figsize=(width, 3), layout="constrained")
        plots.legend_of(figure, [Line2D([], [], label=label) for label in labels])
        (legend,) = figure.legends
        figure.draw_without_rendering()
        lines = {round(text.get_window_extent().y0) for text in legend.get_texts()}
        assert legend.get_window_extent().x1 <= figure.bbox.x1
        return len(lines)

    long = ["mean of 100 steps", "median of 30,100 steps", "validation", "kept", "learning rate drops", "chance 0.1%"]
    assert rows(long[2:], plots.WIDE) == 1
    assert rows(long, plots.WIDE) == 2
    assert rows(long, plots.NARROW) == 3
