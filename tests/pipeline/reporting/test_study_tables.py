from __future__ import annotations

import pandas as pd
import pytest
from small_settings import ROOT

from pipeline.params import load_params
from pipeline.reporting.numbers import MINUS_SIGN
from pipeline.reporting.study_tables import study_changes, study_findings, study_table


@pytest.fixture(scope="module")
def study(results_of_a_run) -> pd.DataFrame:
    return pd.read_csv(results_of_a_run / "compare" / "study.csv")


def test_a_variant_has_a_row_with_all_splits_and_a_star_where_it_differs(study: pd.DataFrame) -> None:
    table = study_table(study)
    assert table.columns[:3] == ("variant", "seeds", "steps") and table.columns[-1] == "out of distribution"
    reference, worse, same = table.rows
    assert reference[:3] == ("ghn2", "3", "1,200") and "(" not in "".join(reference)
    assert all("*)" in cell and f"({MINUS_SIGN}" in cell for cell in worse[3:])
    assert not any("*" in cell for cell in same)


def test_sentences_name_what_a_test_finds_and_nothing_else(study: pd.DataFrame) -> None:
    (sentence,) = study_findings(study)
    assert sentence.startswith("Significantly less accurate than ghn2: mlp (test, wide")
    others = study_findings(study[study["variant"] != "mlp"])
    assert others == ["No variant differs significantly from ghn2 in 6 comparisons."]
    alone = study_findings(study[study["variant"] == "ghn2"])
    assert alone == ["The study has one variant, ghn2, with nothing to compare it with."]


def test_what_a_variant_changes_is_named() -> None:
    settings = load_params(ROOT / "params.yaml").study.model_copy(update={"variants": ["ghn2", "one_architecture"]})
    assert study_changes(settings) == {"ghn2": "the settings of this run", "one_architecture": "meta_batch = 1"}
