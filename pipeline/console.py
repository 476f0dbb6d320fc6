"""Tables, percentages and progress in the terminal."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from tqdm import tqdm

if TYPE_CHECKING:
    import pandas as pd


class Finding(NamedTuple):
    """Something that was looked at, and in one line what is wrong with it; None: nothing."""

    subject: str
    problem: str | None


def print_table(title: str, rows: list[dict[str, str]]) -> None:
    """Print rows with the same keys as a table, the first column left-aligned and the others right-aligned."""
    from rich.console import Console  # here: most processes that import this module print no table
    from rich.table import Table

    table = Table(title=title)
    for position, column in enumerate(rows[0]):
        table.add_column(column, justify="right" if position else "left")
    for row in rows:
        table.add_row(*row.values())
    Console().print(table)


def progress_bar(description: str, unit: str, total: int, **options: Any) -> tqdm[NoReturn]:
    """Return a bar that moves in a terminal, and leaves a line now and then in a log file."""
    interval = 0.2 if sys.stderr.isatty() else 30.0
    return tqdm(desc=description, unit=unit, total=total, mininterval=interval, dynamic_ncols=True, **options)


def log_above_bar(log: logging.Logger, level: int, message: str) -> None:
    """Write a line above the progress bar, if there is one."""
    with tqdm.external_write_mode(sys.stderr):
        log.log(level, message)


def percent(share: float, error: float | None = None) -> str:
    """Return a share (0 to 1) in percent, without the sign, and with its standard error unless that is missing."""
    text = f"{100 * share:.1f}"
    return text if error is None or math.isnan(error) else f"{text} ± {100 * error:.1f}"


def print_bits(title: str, bits: pd.DataFrame, by: str) -> None:
    """Print a table of `pipeline.evaluation.bits.bits_a_byte` with a row for each split and value of a column."""
    rows = [
        {
            "split": row["split"],
            by: str(row[by]),
            "networks": str(row["networks"]),
            "bits per byte": f"{row['bits']:.2f}"
            + ("" if math.isnan(row["bits_error"]) else f" ± {row['bits_error']:.2f}"),
        }
        for row in bits.to_dict("records")
    ]
    print_table(title, rows)


def print_findings(findings: Sequence[Finding]) -> int:
    """Print a line for each problem and for each subject that is well; return the number of problems."""
    for finding in findings:
        print(
            f"  ok   {finding.subject}" if finding.problem is None else f"WRONG  {finding.subject}: {finding.problem}"
        )
    return sum(finding.problem is not None for finding in findings)
