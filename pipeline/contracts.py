"""Common parts of the contracts of tables that one stage writes and another reads, and the reading of such a table.

A contract is a pandera model. Its checks are named by what a value must be, so that an error can say "must be a share,
0 to 1". An error about a table names its file, the first wrong row, and the stage that writes it again.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pandera.pandas as pa
from pandera.errors import SchemaError, SchemaErrorReason, SchemaErrors

from pipeline.errors import UserError

FINITE = "finite"

ROUNDING = 1e-5
"""How far a cosine or a correlation may lie beyond -1 and 1, because it is computed in single precision."""

TEXT_COLUMNS = ("split", "name", "identity", "dataset", "initialisation", "variant")
"""Read as text: a hash or a name may consist of digits alone."""


def share(**field: Any) -> Any:
    """Return a column of shares, 0 to 1; `field` are further arguments of `pandera.Field`, here and below."""
    return pa.Field(in_range={"min_value": 0, "max_value": 1, "error": "a share, 0 to 1"}, **field)


def correlation(**field: Any) -> Any:
    """Return a column of correlations, -1 to 1."""
    limits = {"min_value": -1 - ROUNDING, "max_value": 1 + ROUNDING}
    return pa.Field(in_range={**limits, "error": "a number from -1 to 1"}, **field)


def finite(**field: Any) -> Any:
    """Return a column of finite numbers."""
    return pa.Field(in_range={**_between(-math.inf, math.inf), "error": FINITE}, **field)


def positive(**field: Any) -> Any:
    """Return a column of finite numbers above 0."""
    return pa.Field(in_range={**_between(0, math.inf), "error": "finite and above 0"}, **field)


def count(**field: Any) -> Any:
    """Return a column of whole numbers from 1 on."""
    return pa.Field(ge={"min_value": 1, "error": "a whole number, at least 1"}, **field)


def natural(**field: Any) -> Any:
    """Return a column of whole numbers from 0 on."""
    return pa.Field(ge={"min_value": 0, "error": "a whole number, at least 0"}, **field)


def _between(low: float, high: float) -> dict[str, Any]:
    return {"min_value": low, "max_value": high, "include_min": False, "include_max": False}


class Contract(pa.DataFrameModel):
    """A table with at least one row; further columns are allowed, and columns are converted to their types."""

    class Config:
        coerce = True

    @pa.dataframe_check(error="a table with rows")
    def has_rows(cls, table: pd.DataFrame) -> bool:
        return len(table) > 0


def read_table(path: Path, stage: str, model: type[pa.DataFrameModel]) -> pd.DataFrame:
    """Return a table that a stage has written, with the types of its contract.

    Raises:
        UserError: the file is missing or damaged, or the table breaks the contract.
    """
    return validated_table(read_raw_table(path, stage), model, path, stage)


def read_raw_table(path: Path, stage: str) -> pd.DataFrame:
    """Return a table as it is in its file, which is Parquet or CSV.

    Raises:
        UserError: the file is missing or damaged.
    """
    require_written(path, stage)
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        return pd.read_csv(path, dtype=dict.fromkeys(TEXT_COLUMNS, str))
    except (ValueError, OSError) as error:  # those of pandas and of pyarrow about a damaged file
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}\n{write_again(stage)}") from error


def validated_table(table: pd.DataFrame, model: type[pa.DataFrameModel], path: Path, stage: str) -> pd.DataFrame:
    """Return the table with the types of its contract.

    Raises:
        UserError: the table breaks the contract; the message names the missing column, or the first wrong row.
    """
    try:
        return model.validate(table, lazy=True)
    except SchemaErrors as errors:
        problems: list[SchemaError] = errors.schema_errors
        missing = [name for problem in problems for name in _missing_columns(problem)]
        if missing:
            raise UserError(f"{path} has no column {missing[0]}\n{write_again(stage)}") from errors
        if table.empty:
            raise UserError(f"{path} has no rows\n{write_again(stage)}") from errors
        # Failed conversions come first, and explain the other problems of their column.
        raise UserError(_explanation(problems[0], table, path, stage)) from errors


def _missing_columns(problem: SchemaError) -> list[str]:
    if problem.reason_code is SchemaErrorReason.COLUMN_NOT_IN_DATAFRAME:
        return [str(problem.failure_cases)]
    if problem.reason_code is SchemaErrorReason.INVALID_COLUMN_NAME:  # no column matches a pattern such as ^.+_top1$
        pattern = re.search(r"\^\.\+(.*)\$", str(problem.check))
        return [f"…{pattern[1]}"] if pattern else []
    return []


def _explanation(problem: SchemaError, table: pd.DataFrame, path: Path, stage: str) -> str:
    """Return the first wrong value, its row, and what would be right."""
    cases = problem.failure_cases
    if not isinstance(cases, pd.DataFrame):
        return f"{path}: must be {_right(problem, None)}\n{write_again(stage)}"
    name = problem.check.name if isinstance(problem.check, pa.Check) else None
    if "column" not in cases:
        column, rows = str(problem.schema.name), cases["index"]
    elif name in table:  # a check of whole rows with the name of a column; its cases are whole rows
        column, rows = str(name), cases["index"]
    else:
        column = str(cases["column"].iloc[0])
        rows = cases["index"][cases["column"] == column]
    right = _right(problem, table[column].iloc[int(rows.min())])
    return row_explanation(table, column, int(rows.min()), right, rows.nunique(), path, stage)


def _right(problem: SchemaError, value: Any) -> str:
    """Return what a value must be, in words."""
    if isinstance(value, float) and not math.isfinite(value):
        return "finite"
    if problem.reason_code in (SchemaErrorReason.DATATYPE_COERCION, SchemaErrorReason.WRONG_DATATYPE):
        return "a number"
    if problem.reason_code is SchemaErrorReason.DUPLICATES:
        return "in one row alone"
    return str(getattr(problem.check, "error", problem.check))


def row_explanation(table: pd.DataFrame, column: str, row: int, right: str, wrong: int, path: Path, stage: str) -> str:
    """Return an error message about a value of a table: its row, what would be right, and how many rows are wrong."""
    return (
        f"{column} = {table[column].iloc[row]} in row {row + 1} of {path}: must be {right}\n"
        f"{wrong:,} of {len(table):,} rows are wrong. {write_again(stage)}"
    )


def require_written(path: Path, stage: str) -> None:
    """Raise UserError if a stage has not written a file."""
    if not path.is_file():
        raise UserError(f"{path} not found: stage {stage} writes it, run `dvc repro {stage}`")


def write_again(stage: str) -> str:
    """Return the advice for a damaged output of a stage."""
    return f"`dvc repro --force {stage}` writes it again"
