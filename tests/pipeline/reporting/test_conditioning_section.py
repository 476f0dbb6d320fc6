from __future__ import annotations

import pandas as pd

from pipeline.reporting.conditioning_section import conditioning_findings, conditioning_table
from pipeline.training.conditioning_tables import (
    SINGLE,
    TOGETHER,
    ConditioningScores,
    conditioned_accuracies,
    summarise_conditioning,
)


def summary(seeds: int = 2) -> pd.DataFrame:
    means = {
        TOGETHER: {"digits": 0.4, "mnist_5k": 0.6, "faces": 0.8},
        SINGLE: {"mnist_5k": 0.62, "faces": 0.79},
    }
    rows = [
        {
            **{"dataset": dataset, "hypernetwork": name, "is_learned": dataset != "digits"},
            **{"seed": seed, "architecture": architecture, "test_top1": mean + 0.02 * seed},
        }
        for name, of_sets in means.items()
        for dataset, mean in of_sets.items()
        for seed in range(seeds)
        for architecture in range(3)
    ]
    classes = {"digits": 10, "mnist_5k": 10, "faces": 2}
    return summarise_conditioning(ConditioningScores.validate(pd.DataFrame(rows)), classes)


def test_a_row_compares_one_for_all_with_one_for_it() -> None:
    rows = conditioning_table(summary()).rows
    assert rows[0] == ("mnist_5k", "learned", "61.0 ± 1.0", "63.0 ± 1.0", "−2.0", "10")  # noqa: RUF001 (a minus sign)
    assert rows[1][4:] == ("+1.0", "50")
    assert rows[2] == ("digits", "a few images, no training", "41.0 ± 1.0", "", "", "10")


def test_sentences_say_what_is_lost_and_what_is_predicted_without_training() -> None:
    first, second = conditioning_findings(summary())
    assert "learned mnist_5k and faces together" in first
    assert first.endswith("the difference is −2.0 to +1.0 points.")  # noqa: RUF001 (a minus sign)
    assert second.startswith("For digits, which it has never learned from, its networks classify 41.0 ± 1.0%")


def test_mlflow_knows_the_means_by_short_names() -> None:
    assert set(conditioned_accuracies(summary(seeds=1))) == {
        *("mnist_5k_together_top1", "mnist_5k_single_top1", "faces_together_top1", "faces_single_top1"),
        "digits_together_top1",
    }
