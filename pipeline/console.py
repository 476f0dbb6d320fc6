"""Tables and percentages in the terminal."""

from __future__ import annotations

import math


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


def percent(share: float, error: float | None = None) -> str:
    """Return a share (0 to 1) in percent, without the sign, and with its standard error unless that is missing."""
    text = f"{100 * share:.1f}"
    return text if error is None or math.isnan(error) else f"{text} ± {100 * error:.1f}"
