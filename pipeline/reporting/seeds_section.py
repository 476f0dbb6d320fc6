"""What the page and the README say about several seeds: the row of the leaderboard that is shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from pipeline.console import percent
from pipeline.evaluation.initialisations import BASELINE, HEADLINE
from pipeline.evaluation.significance import SIGNIFICANT
from pipeline.reporting.leaderboard import (
    NETWORK,
    RACE_SPLITS,
    TARGETS,
    LeaderboardRow,
    MeanAndError,
    mean_and_error,
)
from pipeline.reporting.numbers import count, listing
from pipeline.reporting.page import Table

NORM_FREE = "bn_free"
NETWORK_LABEL = "ResNet-50"

NUMBER_WORDS = {3: "Three", 4: "Four", 5: "Five"}


@dataclass(frozen=True)
class SeedsSection:
    """The section of the page.

    Attributes:
        title: the number of seeds.
        table: accuracies over seeds, beside those of the run that the page is about.
        cost: a sentence about the time of training.
        origin: machine, commit and date.
        command: the one that measured it.
        findings: sentences on where predicted parameters do worst.
    """

    title: str
    table: Table
    cost: str
    origin: str
    command: str
    findings: list[str]


def seeds_section(
    row: LeaderboardRow, accuracy: pd.DataFrame, architectures: pd.DataFrame, budgets: pd.DataFrame
) -> SeedsSection:
    """Return what the page says about several seeds.

    Args:
        row: the one of the leaderboard that is shown.
        accuracy: of the run that the page is about, a row for each split.
        architectures: of that run, a row for each (split, index, initialisation).
        budgets: of that run, a row for each comparison of fine-tuning at each budget.
    """
    number = len(row.seeds)
    return SeedsSection(
        title=f"{NUMBER_WORDS.get(number, number)} seeds",
        table=seeds_table(row, one_run_accuracies(accuracy, architectures)),
        cost=seeds_cost(row),
        origin=seeds_origin(row),
        command=row.command,
        findings=[*lowest_splits(row), *lost_comparisons(budgets)],
    )


def seeds_markdown(row: LeaderboardRow | None) -> str:
    """Return what the README says about several seeds; nothing if no row is shown."""
    if row is None:
        return ""
    return (
        f"One run is one seed. Training with {len(row.seeds)} seeds gives:\n\n{seeds_table(row).markdown()}\n"
        f"{seeds_cost(row)} Measured on {seeds_origin(row)}, with `{row.command}`.\n\n"
    )


def seeds_metrics(row: LeaderboardRow) -> dict[str, float]:
    """Return what MLflow lists: the number of seeds, and means and standard errors of each split as shares."""
    metrics: dict[str, float] = {"seeds": len(row.seeds)}
    for split in RACE_SPLITS:
        centre, error = row.top1(split)
        metrics[f"seeds_{split}_top1"] = centre / 100
        if error is not None:
            metrics[f"seeds_{split}_top1_error"] = error / 100
    return metrics


def seeds_table(row: LeaderboardRow, one_run: Mapping[str, str] | None = None) -> Table:
    """Return a line for each split and for ResNet-50: mean ± standard error over seeds, in percent.

    Args:
        row: the shown one.
        one_run: the same accuracies of a single run, in words, for a column of their own.
    """
    cells = {split: row.top1(split).words() for split in RACE_SPLITS}
    cells[NETWORK_LABEL] = mean_and_error([seed.resnet50 for seed in row.seeds]).words()
    columns = ("split", f"top-1, %, mean ± standard error of {len(row.seeds)} seeds")
    if one_run is None:
        return Table(columns, list(cells.items()))
    return Table((*columns, "this run"), [(name, text, one_run.get(name, "")) for name, text in cells.items()])


def one_run_accuracies(accuracy: pd.DataFrame, architectures: pd.DataFrame) -> dict[str, str]:
    """Return the top-1 of a run's predicted parameters in percent, by what `seeds_table` lists.

    Args:
        accuracy: a row for each split.
        architectures: a row for each (split, index, initialisation).
    """
    shares = dict(zip(accuracy["split"], accuracy[f"{HEADLINE}_top1"], strict=True))
    networks = architectures[architectures["name"].eq(NETWORK) & architectures["initialisation"].eq(HEADLINE)]
    if len(networks):
        shares[NETWORK_LABEL] = networks["top1"].iloc[0]
    return {name: percent(share) for name, share in shares.items()}


def seeds_cost(row: LeaderboardRow) -> str:
    """Return how long the seeds trained, and when they reached the target accuracies, in two sentences."""
    steps, minutes, seconds = (
        mean_and_error([getattr(seed, name) for seed in row.seeds]) for name in ("steps", "minutes", "seconds_per_step")
    )
    return (
        f"Training took {minutes.words()} minutes per seed, {steps.mean:,.0f} steps of {seconds.words(3)} s. On unseen "
        f"architectures of split val, top-1 reached {listing(_time_to(row, target) for target in TARGETS)}."
    )


def seeds_origin(row: LeaderboardRow) -> str:
    """Return where the figures come from: machine, commit and date."""
    return f"{row.machine}, commit {row.commit}, {row.date}"


def lowest_splits(row: LeaderboardRow) -> list[str]:
    """Return sentences on the two lowest splits and on networks without norm, beside split test."""
    others = sorted((split for split in RACE_SPLITS if split != "test"), key=lambda split: row.top1(split).mean)
    lowest, second, *_ = others
    findings = [
        f"Over seeds, predicted parameters do worst on split {_beside_test(row, lowest)}, then on "
        f"{_beside_test(row, second)}."
    ]
    if NORM_FREE not in (lowest, second):
        findings.append(f"Networks without norm are not among them: {_beside_test(row, NORM_FREE)}.")
    return findings


def lost_comparisons(budgets: pd.DataFrame) -> list[str]:
    """Return a sentence on how often fine-tuning ends significantly below random initialisation.

    Args:
        budgets: a row for each comparison of fine-tuning at each budget.
    """
    at_end = budgets[(budgets["budget"] == 1) & (budgets["initialisation"] != BASELINE)]
    behind = at_end[(at_end["corrected_p_value"] < SIGNIFICANT) & (at_end["difference"] < 0)]
    where = f"{len(behind)} of {count(len(at_end), 'comparison')}; the section on fine-tuning says where"
    if behind.empty:
        where = f"none of {count(len(at_end), 'comparison')}"
    return [
        "As a start for fine-tuning in this run, they and their variants end significantly below random initialisation "
        f"in {where}."
    ]


def _beside_test(row: LeaderboardRow, split: str) -> str:
    """Return a split's accuracy and its distance to split test, whose error is that of the seeds' own distances."""
    gap = mean_and_error([seed.top1["test"] - seed.top1[split] for seed in row.seeds])
    distance = MeanAndError(abs(gap.mean), gap.error).words()
    side = "below" if gap.mean >= 0 else "above"
    norm_free = "without norm layers, " if split == NORM_FREE else ""
    return f"{split} ({norm_free}{row.top1(split).words()}%, {distance} points {side} test)"


def _time_to(row: LeaderboardRow, target: int) -> str:
    times = [minutes for seed in row.seeds if (minutes := seed.minutes_to[str(target)]) is not None]
    if not times:
        return f"{target}% never"
    some = f" in {len(times)} of {len(row.seeds)} seeds" if len(times) < len(row.seeds) else ""
    return f"{target}% after {mean_and_error(times).words()} minutes{some}"
