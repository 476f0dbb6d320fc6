"""Tables and sentences about fine-tuning: each initialisation beside the baseline, in pairs of runs."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from pipeline.console import percent
from pipeline.evaluation.budgets import BUDGETS, EARLY_BUDGET
from pipeline.evaluation.initialisations import BASELINE
from pipeline.evaluation.significance import SIGNIFICANT
from pipeline.reporting.cells import difference_cell, learning_rate_cell
from pipeline.reporting.numbers import MINUS_SIGN, listing
from pipeline.reporting.page import Table

KEY = ["dataset", "images_per_class", "initialisation"]


def finetuning_table(finetuning: pd.DataFrame, budgets: pd.DataFrame) -> Table:
    """Return a row for each data set, number of images per class and initialisation.

    Args:
        finetuning: the summary, a row for each of them.
        budgets: a row for each of them and each budget.
    """
    columns = (
        "data set",
        "images per class",
        "initialisation",
        "learning rate",
        f"top-1 at {EARLY_BUDGET:.0%} of the steps, %",
        f"{MINUS_SIGN} {BASELINE}",
        "top-1 at the end, %",
        f"{MINUS_SIGN} {BASELINE}",
        f"steps to {BASELINE}'s end",
    )
    early, final = (budgets[budgets["budget"] == budget].set_index(KEY) for budget in (EARLY_BUDGET, 1.0))
    rows = []
    for row in finetuning.to_dict("records"):
        key = tuple(row[name] for name in KEY)
        cells = []
        for at_budget in (early.loc[key], final.loc[key]):
            cells += [percent(at_budget["test_top1"], at_budget["test_top1_error"]), difference_cell(at_budget)]
        rows.append(
            (
                row["dataset"],
                f"{row['images_per_class']:,}",
                row["initialisation"],
                learning_rate_cell(row),
                *cells,
                "never" if pd.isna(row["share_to_target"]) else f"{row['share_to_target']:.0%}",
            )
        )
    return Table(columns, rows, words=3)


def budgets_table(budgets: pd.DataFrame) -> Table:
    """Return a row for each initialisation that is compared with the baseline: differences at all budgets, in points.

    Args:
        budgets: a row for each data set, number of images per class, initialisation and budget.
    """
    columns = ("data set", "images per class", "initialisation", *(f"{budget:.0%} of the steps" for budget in BUDGETS))
    rows = [
        (str(dataset), f"{number:,}", str(initialisation), *map(difference_cell, own.to_dict("records")))
        for (dataset, number, initialisation), own in _compared(budgets).groupby(KEY, sort=False)
    ]
    return Table(columns, rows, words=3)


def finetuning_findings(budgets: pd.DataFrame, labels: Mapping[str, str]) -> list[str]:
    """Return a sentence for each compared initialisation: where it is ahead of the baseline, and where behind.

    Args:
        budgets: a row for each data set, number of images per class, initialisation and budget.
        labels: those of the initialisations by name.
    """
    compared = _compared(budgets)
    if compared["corrected_p_value"].isna().all():
        return [f"With a single run each, no difference from {labels[BASELINE]} can be told from chance."]
    findings = []
    for name, own in compared.groupby("initialisation", sort=False):
        early, final = (_standing(own[own["budget"] == budget]) for budget in (EARLY_BUDGET, 1.0))
        label = labels[str(name)]
        findings.append(
            f"{label[0].upper()}{label[1:]} against {labels[BASELINE]}: at {EARLY_BUDGET:.0%} of the steps {early}; "
            f"at the end {final}."
        )
    return findings


def _compared(budgets: pd.DataFrame) -> pd.DataFrame:
    return budgets[budgets["initialisation"] != BASELINE]


def _standing(rows: pd.DataFrame) -> str:
    """Return where an initialisation is significantly ahead and behind at one budget, in words."""
    significant = rows[rows["corrected_p_value"] < SIGNIFICANT]
    ahead, behind = significant[significant["difference"] > 0], significant[significant["difference"] < 0]
    parts = [f"{word} on {_cases(found)}" for word, found in (("ahead", ahead), ("behind", behind)) if len(found)]
    if not parts:
        return "not distinguishable"
    return ", ".join([*parts, "not distinguishable elsewhere"] if len(significant) < len(rows) else parts)


def _cases(rows: pd.DataFrame) -> str:
    """Return data sets with their numbers of images per class: digits (10 and 100 images per class) and faces (1)."""
    cases: list[str] = []
    for dataset, own in rows.groupby("dataset", sort=False):
        numbers = listing(f"{number:,}" for number in own["images_per_class"])
        cases.append(f"{dataset} ({numbers}{'' if cases else ' per class'})")
    return listing(cases)
