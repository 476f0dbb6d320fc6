"""Common parts of the contracts of tables that one stage writes and another reads.

A contract is a pandera model. Its checks are named by what a value must be, so that an error can say "must be a share,
0 to 1".
"""

from __future__ import annotations

import pandas as pd
import pandera.pandas as pa

SHARE = "a share, 0 to 1"
FINITE = "finite"
POSITIVE = "finite and above 0"
COUNT = "a whole number, at least 1"
NATURAL = "a whole number, at least 0"


class Contract(pa.DataFrameModel):
    """A table with at least one row; further columns are allowed, and columns are converted to their types."""

    class Config:
        coerce = True

    @pa.dataframe_check(error="a table with rows")
    def has_rows(cls, table: pd.DataFrame) -> bool:
        return len(table) > 0
