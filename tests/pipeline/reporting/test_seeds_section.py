"""What the page, the README and MLflow say about several seeds: the figures of one row of the leaderboard."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from leaderboard_examples import TOP1, a_row, a_seed

from pipeline.evaluation.initialisations import BASELINE
from pipeline.reporting.leaderboard import RACE_SPLITS
from pipeline.reporting.read_results import Results, read_results
from pipeline.reporting.seeds_section import (
    lost_comparisons,
    lowest_splits,
    seeds_cost,
    seeds_markdown,
    seeds_metrics,
    seeds_section,
)

ERROR = 1 / 3**0.5
"""The standard error of the accuracies of `a_row`, in points."""


@pytest.fixture(scope="module")
def read(results_of_a_run: Path) -> Results:
    return read_results(results_of_a_run)


def test_the_section_has_the_seeds_beside_the_run(read: Results) -> None:
    section = seeds_section(a_row(), read.accuracy, read.architectures, read.budgets)
    assert section.title == "Three seeds"
    assert [row[0] for row in section.table.rows] == [*RACE_SPLITS, "ResNet-50"]
    assert section.table.rows[0] == ("test", f"70.0 ± {ERROR:.1f}", f"{100 * read.headline['predicted_top1']:.1f}")
    assert section.table.rows[-1][1] == "55.0 ± 0.0"
    own = read.architectures.query("name == 'resnet50' and initialisation == 'predicted'")["top1"]
    assert section.table.rows[-1][2] == f"{100 * own.item():.1f}"


def test_a_run_without_some_split_leaves_its_cell_empty(read: Results) -> None:
    accuracy = read.accuracy[read.accuracy["split"] != "deep"]
    table = seeds_section(a_row(), accuracy, read.architectures, read.budgets).table
    assert {row[0]: row[2] for row in table.rows}["deep"] == ""


def test_the_lowest_splits_are_named_with_their_distance_to_test() -> None:
    (sentence,) = lowest_splits(a_row())
    assert "worst on split bn_free (without norm layers, 35.0 ± 0.6%, 35.0 ± 0.0 points below test)" in sentence
    assert "then on wide (62.0 ± 0.6%, 8.0 ± 0.0 points below test)" in sentence


def test_norm_free_networks_are_spoken_of_even_if_they_do_well() -> None:
    seeds = [a_seed(seed, top1=TOP1 | {"bn_free": 75.0}) for seed in range(3)]
    lowest, norm_free = lowest_splits(a_row(seeds=seeds))
    assert "wide (62.0 ± 0.0%" in lowest
    assert "bn_free (without norm layers, 75.0 ± 0.0%, 5.0 ± 0.0 points above test)" in norm_free


def test_lost_comparisons_are_those_significantly_below_random_at_the_end(read: Results) -> None:
    budgets = read.budgets.assign(corrected_p_value=0.5, difference=-0.1)
    compared = budgets["initialisation"].ne(BASELINE) & budgets["budget"].eq(1)
    assert f"in none of {compared.sum()} comparisons." in lost_comparisons(budgets)[0]
    budgets.loc[compared.idxmax(), "corrected_p_value"] = 0.01
    assert f"in 1 of {compared.sum()} comparisons" in lost_comparisons(budgets)[0]
    assert "in none of" in lost_comparisons(budgets.assign(difference=0.1))[0]


def test_the_cost_says_which_accuracies_were_reached_and_by_how_many_seeds() -> None:
    seeds = [a_seed(seed, minutes_to={"60": 4.0 + seed, "70": 9.0 if seed else None, "80": None}) for seed in range(3)]
    text = seeds_cost(a_row(seeds=seeds))
    assert text.startswith("Training took 10.0 ± 0.0 minutes per seed, 2,000 steps of 0.300 ± 0.000 s.")
    assert "60% after 5.0 ± 0.6 minutes, 70% after 9.0 ± 0.0 minutes in 2 of 3 seeds and 80% never" in text


def test_the_readme_names_machine_commit_and_command_and_nothing_without_a_row() -> None:
    text = seeds_markdown(a_row())
    assert f"| test | 70.0 ± {ERROR:.1f} |" in text
    assert "a machine, commit 0123456789ab, 2026-01-01, with `python benchmarks/learning.py 'a row'`" in text
    assert seeds_markdown(None) == ""


def test_mlflow_lists_means_and_errors_as_shares() -> None:
    metrics = seeds_metrics(a_row())
    assert metrics["seeds"] == 3
    assert metrics["seeds_test_top1"] == pytest.approx(0.7)
    assert metrics["seeds_test_top1_error"] == pytest.approx(ERROR / 100)
    assert set(metrics) == {"seeds"} | {f"seeds_{split}_top1{end}" for split in RACE_SPLITS for end in ("", "_error")}
    assert pd.Series(metrics).notna().all()
