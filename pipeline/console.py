"""What the terminal shows."""

from __future__ import annotations

import math


def print_table(title: str, rows: list[dict[str, str]]) -> None:
    """Prints rows, all with the same keys, as a table; the first column is left-aligned."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for position, column in enumerate(rows[0]):
        table.add_column(column, justify="right" if position else "left")
    for row in rows:
        table.add_row(*row.values())
    Console().print(table)


def percent(share: float, error: float | None = None) -> str:
    """A share (0 to 1) in percent, without the sign; with its standard error where there is one."""
    text = f"{100 * share:.1f}"
    return text if error is None or math.isnan(error) else f"{text} ± {100 * error:.1f}"
