"""The table and the sentences about one hypernetwork for several data sets."""

from __future__ import annotations

import pandas as pd

from pipeline.console import percent
from pipeline.reporting.cells import points
from pipeline.reporting.numbers import MINUS_SIGN, listing
from pipeline.reporting.page import Table


def conditioning_table(conditioning: pd.DataFrame) -> Table:
    """Return a row for each data set.

    Args:
        conditioning: the summary, a row for each of them.
    """
    rows = [
        (
            row["dataset"],
            "learned" if row["is_learned"] else "a few images, no training",
            percent(row["together_top1"], row["together_top1_error"]),
            percent(row["single_top1"], row["single_top1_error"]) if row["is_learned"] else "",
            points(row["together_top1"] - row["single_top1"]) if row["is_learned"] else "",
            f"{100 / row['classes']:.3g}",
        )
        for row in conditioning.to_dict("records")
    ]
    columns = ("data set", "known by", "one for all, top-1, %", "one for it, top-1, %", f"{MINUS_SIGN} one for it")
    return Table((*columns, "chance, %"), rows, words=2)


def conditioning_findings(conditioning: pd.DataFrame) -> list[str]:
    """Return sentences: how much one hypernetwork for all loses, and what it predicts for data sets it never saw."""
    learned = conditioning[conditioning["is_learned"]]
    gaps = (learned["together_top1"] - learned["single_top1"]).sort_values()
    findings = [
        f"One hypernetwork learned {listing(learned['dataset'])} together. Beside one for each of them, with as many "
        f"steps on it, the difference is {points(gaps.iloc[0])} to {points(gaps.iloc[-1])} points."
    ]
    findings += [
        f"For {row['dataset']}, which it has never learned from, its networks classify "
        f"{percent(row['together_top1'], row['together_top1_error'])}%: statistics of a few images of each of "
        f"{row['classes']} classes are all that it gets."
        for row in conditioning[~conditioning["is_learned"]].to_dict("records")
    ]
    return findings
