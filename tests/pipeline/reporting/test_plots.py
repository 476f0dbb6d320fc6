from __future__ import annotations

import re
from itertools import combinations, pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from example_results import make_results
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from skimage.color import rgb2lab

from pipeline.reporting import accuracy_plots, plots
from pipeline.reporting.accuracy_plots import Series, series_of
from pipeline.reporting.read_results import Results, read_results
from pipeline.reporting.theme import SERIES_COLORS, SURFACE, THEME


def accuracy_by_split(results: Results, width: float = plots.WIDE) -> Figure:
    return accuracy_plots.accuracy_by_split(results.architectures, series_of(results.labels), results.chance, width)


@pytest.mark.parametrize("width", [plots.WIDE, plots.NARROW])
def test_the_accuracy_plot_prints_the_mean_of_each_split(results_of_a_run: Path, width: float) -> None:
    results = read_results(results_of_a_run)
    (axes,) = accuracy_by_split(results, width).axes
    printed = [text.get_text() for text in axes.texts]
    means = results.accuracy[["predicted_top1", "random_top1"]].to_numpy().ravel()
    assert printed == [f"{100 * mean:.1f}" for mean in means]
    assert axes.get_yticklabels()[0].get_text() == "test\nn = 100"


def test_every_initialisation_has_a_lane_a_colour_and_an_entry_in_the_legend(tmp_path: Path) -> None:
    others = ["sgd", "nearest", "small_norm"]
    results = read_results(make_results(tmp_path / "results", others=others))
    series = series_of(results.labels)
    by_split = accuracy_by_split(results)
    (axes,) = by_split.axes
    means = results.accuracy[[f"{one.name}_top1" for one in series]].to_numpy().ravel()
    assert [text.get_text() for text in axes.texts] == [f"{100 * mean:.1f}" for mean in means]
    heights = [text.xy[1] for text in axes.texts]
    assert heights == sorted(heights)
    assert min(b - a for a, b in pairwise(heights)) > 2 * accuracy_plots.LANE_REACH
    for figure in (
        by_split,
        accuracy_plots.accuracy_by_size(results.architectures, series, results.chance),
        accuracy_plots.finetuning_curves(results.curves, series, {"digits": 0.1, "faces": 0.5}),
    ):
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()][:-1] == [one.label for one in series]
        svg = plots.inline_svg(figure, "name", "description")
        assert all(f"var(--{color.variable})" in svg for color in THEME if color.light in {one.color for one in series})


def test_colours_can_be_told_apart_and_seen_on_light_and_on_dark_surfaces() -> None:
    assert len(set(SERIES_COLORS)) == len(SERIES_COLORS) == 8
    surface = {"light": SURFACE, "dark": next(color.dark for color in THEME if color.light == SURFACE)}
    for name in ("light", "dark"):
        colors = [getattr(color, name) for color in THEME if color.light in SERIES_COLORS]
        assert min(contrast(color, surface[name]) for color in colors) > 2.8
        assert min(distance(a, b) for a, b in combinations(colors, 2)) > 20


def test_colours_repeat_rather_than_end() -> None:
    series = series_of({str(number): "" for number in range(9)})
    assert series[8] == Series("8", "", series[0].color)


def contrast(color: str, surface: str) -> float:
    """Return the contrast ratio of WCAG 2."""

    def luminance(color: str) -> float:
        channels = np.array(to_rgb(color))
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ (0.2126, 0.7152, 0.0722))

    low, high = sorted((luminance(color), luminance(surface)))
    return (high + 0.05) / (low + 0.05)


def distance(a: str, b: str) -> float:
    """Return the distance of two colours in CIELAB, in which about 2 can just be seen."""
    lab = rgb2lab(np.array([[to_rgb(a), to_rgb(b)]]))[0]
    return float(np.linalg.norm(lab[0] - lab[1]))


def test_a_single_run_of_fine_tuning_can_be_plotted(results_of_a_run: Path) -> None:
    results = read_results(results_of_a_run)
    one_run = results.curves.query("architecture == 0 and seed == 0 and dataset == 'digits' and images_per_class == 10")
    (axes,) = accuracy_plots.finetuning_curves(one_run, series_of(results.labels), {"digits": 0.1}).axes
    assert axes.get_title(loc="left") == "digits, 10 per class"


@pytest.mark.parametrize(("width", "columns"), [(plots.WIDE, 3), (plots.NARROW, 2)])
def test_each_data_set_and_number_of_images_has_a_panel_and_data_sets_begin_a_row(
    results_of_a_run: Path, width: float, columns: int
) -> None:
    results = read_results(results_of_a_run)
    chances = {"digits": 0.1, "faces": 0.5}
    figure = accuracy_plots.finetuning_curves(results.curves, series_of(results.labels), chances, width)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in panels] == [
        *(f"digits, {number} per class" for number in (1, 10, 100)),
        *(f"faces, {number} per class" for number in (1, 10)),
    ]
    assert panels[3].get_subplotspec().colspan.start == 0
    assert figure.axes[0].get_gridspec().ncols == columns


def test_an_svg_takes_its_colours_from_the_page_and_has_identifiers_of_its_own(results_of_a_run: Path) -> None:
    results = read_results(results_of_a_run)
    figures = (accuracy_by_split(results) for _ in "xy")
    first, second = (plots.inline_svg(figure, name, 'a "b" <c>') for figure, name in zip(figures, "xy", strict=True))
    assert not re.search(r"#[0-9a-f]{6}\b", first)
    assert "var(--accent)" in first
    assert 'aria-label="a &quot;b&quot; &lt;c>"' in first
    identifiers = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (first, second)]
    assert identifiers[0] and not identifiers[0] & identifiers[1]
    references = set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', first))
    assert references <= identifiers[0]


def test_a_legend_that_is_too_long_for_one_row_has_two() -> None:
    @matplotlib.rc_context(plots.STYLE)
    def rows(labels: list[str], width: float) -> int:
        figure = Figure(figsize=(width, 3), layout="constrained")
        plots.add_legend(figure, [Line2D([], [], label=label) for label in labels])
        (legend,) = figure.legends
        figure.draw_without_rendering()
        lines = {round(text.get_window_extent().y0) for text in legend.get_texts()}
        assert legend.get_window_extent().x1 <= figure.bbox.x1
        return len(lines)

    long = ["mean of 100 steps", "median of 30,100 steps", "validation", "kept", "learning rate drops", "chance 0.1%"]
    assert rows(long[2:], plots.WIDE) == 1
    assert rows(long, plots.WIDE) == 2
    assert rows(long, plots.NARROW) == 3
