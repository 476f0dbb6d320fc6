"""The tables and the sentences about the study: each variant beside the first one, in pairs of architectures."""

from __future__ import annotations

import pandas as pd

from pipeline.console import percent
from pipeline.evaluation.significance import SIGNIFICANT
from pipeline.params import StudySettings, flat_settings
from pipeline.reporting.cells import difference_cell
from pipeline.reporting.numbers import count, listing
from pipeline.reporting.page import Table


def study_table(study: pd.DataFrame) -> Table:
    """Return a row for each variant: its mean accuracy in percent on each split, and its difference from the first.

    A star marks a difference that a paired test finds after correction for all comparisons of the study.
    """
    splits = list(dict.fromkeys(study["split"]))
    rows = study.set_index(["variant", "split"])
    lines = []
    for variant in dict.fromkeys(study["variant"]):
        own = [rows.loc[(variant, split)] for split in splits]
        lines.append((variant, f"{own[0]['seeds']:.0f}", f"{own[0]['steps']:,.0f}", *map(_cell, own)))
    return Table(("variant", "seeds", "steps", *splits), lines)


def _cell(row: pd.Series) -> str:
    mean = percent(row["top1"], row["top1_error"])
    return f"{mean} ({compared})" if (compared := difference_cell(row)) else mean


def study_changes(settings: StudySettings) -> dict[str, str]:
    """Return the settings that each variant of the study changes, in words."""
    changes = {name: flat_settings(settings.changes[name]) for name in settings.variants}
    return {
        name: ", ".join(f"{key} = {value}" for key, value in own.items()) or "the settings of this run"
        for name, own in changes.items()
    }


def study_findings(study: pd.DataFrame) -> list[str]:
    """Return sentences on which variants are better or worse than the first one, on all splits together."""
    reference, *others = dict.fromkeys(study["variant"])
    if not others:
        return [f"The study has one variant, {reference}, with nothing to compare it with."]
    found = study[study["corrected_p_value"] < SIGNIFICANT]
    sentences = []
    for sign, word in ((-1, "less"), (1, "more")):
        names = [
            f"{variant} ({listing(own['split'])})"
            for variant, own in found[sign * found["difference"] > 0].groupby("variant", sort=False)
        ]
        if names:
            sentences.append(f"Significantly {word} accurate than {reference}: {listing(names)}.")
    if not sentences:
        tests = int(study["p_value"].notna().sum())
        sentences.append(f"No variant differs significantly from {reference} in {count(tests, 'comparison')}.")
    return sentences
