from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from pipeline.evaluation.detection_runs import as_png
from pipeline.evaluation.detection_tables import DetectionCurves, ShownDetections, summarise_detection
from pipeline.reporting.detection_section import (
    RIGHT,
    WRONG,
    detected_scenes,
    detection_curves,
    detection_findings,
    detection_table,
    overlap,
)

LABELS = {"predicted": "predicted parameters", "random": "random initialisation"}


def curves(seeds: int = 2) -> pd.DataFrame:
    rows = [
        {
            **{"backbone": "resnet18", "initialisation": name, "learning_rate": 0.05},
            **{"rate_is_inside": name == "random", "seed": seed, "epoch": epoch},
            **{"ap": 0.05 * epoch, "ap50": gain + 0.1 * epoch + 0.02 * seed},
        }
        for name, gain in (("predicted", 0.08), ("random", 0.0))
        for seed in range(seeds)
        for epoch in range(1, 4)
    ]
    return DetectionCurves.validate(pd.DataFrame(rows))


def test_a_row_says_precision_after_a_third_and_at_the_end() -> None:
    table = detection_table(summarise_detection(curves()), LABELS)
    assert table.columns[3] == "AP50 after epoch 1, %"
    first, second = table.rows
    assert first[:3] == ("resnet18", "predicted parameters", "0.05 (end)")
    assert first[3:] == ("19.0 ± 1.0", "+8.0 ± 0.0", "39.0 ± 1.0", "15.0 ± 0.0")
    assert second[2:5] == ("0.05", "11.0 ± 1.0", "")


def test_a_sentence_says_how_far_predictions_are_ahead() -> None:
    (sentence,) = detection_findings(summarise_detection(curves()), LABELS)
    assert "AP50 from random initialisation is 11.0 ± 1.0% after epoch 1 of 3" in sentence
    assert "+8.0 ± 0.0 points with predicted parameters (at the end +8.0)" in sentence


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_figure_has_a_line_for_each_initialisation(seeds: int) -> None:
    (axes,) = detection_curves(curves(seeds), LABELS).axes
    lines = [container.lines[0] for container in axes.containers]
    assert [line.get_xdata().tolist() for line in lines] == [[1, 2, 3]] * 2


def test_right_boxes_are_green_and_unsure_ones_are_not_drawn() -> None:
    scene = {"png": as_png(np.zeros((3, 20, 20), np.uint8)), "boxes": [[2.0, 2.0, 10.0, 10.0]], "labels": [0]}
    boxes = [[2.0, 2.0, 10.0, 9.0], [2.0, 2.0, 10.0, 9.0], [12.0, 12.0, 18.0, 18.0], [2.0, 2.0, 10.0, 10.0]]
    found = (boxes, [0, 1, 0, 0], [0.9, 0.8, 0.7, 0.2])
    shown = ShownDetections(classes=["a", "b"], scenes=[scene], found={"resnet18": {"predicted": [found]}})
    (axes,) = detected_scenes(shown, "resnet18", LABELS).axes
    drawn = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert [to_hex(patch.get_edgecolor()) for patch in drawn] == [RIGHT, WRONG, WRONG]


def test_overlap_is_intersection_over_union() -> None:
    assert overlap((0, 0, 10, 10), (0, 0, 10, 5)) == 0.5
    assert overlap((0, 0, 10, 10), (10, 0, 20, 10)) == 0
