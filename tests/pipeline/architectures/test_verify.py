from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ghn.deepnets1m.sampling import sample_architecture
from pipeline.architectures.shards import Row, row, table_of, write_shard
from pipeline.architectures.store import write_manifest
from pipeline.architectures.verify import verify
from pipeline.errors import UserError
from pipeline.params import Params
from pipeline.results import MANIFEST

ARCHITECTURES = {split: [sample_architecture(0, split, index) for index in range(4)] for split in ("train", "test")}

Rows = dict[str, list[Row]]

SmallProject = Callable[..., Params]


def write(params: Params, change: Callable[[Rows], object]) -> None:
    """Write a storage and a manifest of a few rows after a change."""
    rows = {
        split: [row(index, architecture, 0, 0) for index, architecture in enumerate(architectures)]
        for split, architectures in ARCHITECTURES.items()
    }
    rows["wide"] = [
        row(index, architecture.widened(8), 0, 0) for index, architecture in enumerate(ARCHITECTURES["test"])
    ]
    change(rows)
    shards = {
        split: [write_shard(f"{params.storage}/{split}/0.parquet", table_of(of_split))]
        for split, of_split in rows.items()
    }
    write_manifest(MANIFEST, {split: (split, of_split) for split, of_split in shards.items()})


@pytest.mark.parametrize("every_row", [False, True])
def test_what_was_sampled_is_verified_split_by_split(
    small_project: SmallProject, capsys: pytest.CaptureFixture[str], every_row: bool
) -> None:
    write(small_project(), lambda rows: None)
    verify(small_project(), recompute=2, every_row=every_row)
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert [line for line in lines if line and line[0] in ("train", "test", "wide")] == [
        [split, "4", "0", "0", "4" if every_row else "2", "0"] for split in ("train", "test", "wide")
    ]


def repeat(rows: Rows) -> None:
    rows["train"].append(row(4, ARCHITECTURES["train"][1]))


def share(rows: Rows) -> None:
    rows["test"].append(row(4, ARCHITECTURES["train"][1]))


def miscount(rows: Rows) -> None:
    rows["train"][2] = rows["train"][2]._replace(parameters_large=1)


def exchange(rows: Rows) -> None:
    """Store the sample of one index under another."""
    rows["train"][2:] = [row(2, ARCHITECTURES["train"][3], 0, 0), row(3, ARCHITECTURES["train"][2], 0, 0)]


def sample_with_another_seed(rows: Rows) -> None:
    rows["train"][2] = row(2, sample_architecture(1, "train", 2), 1, 0)


def widen_less(rows: Rows) -> None:
    rows["wide"][3] = row(3, ARCHITECTURES["test"][3].with_width(64), 0, 0)


def rename(rows: Rows) -> None:
    """Give a row the hash of another network."""
    summary = rows["train"][2].summary._replace(network_hash=rows["train"][2].summary.network_hash[::-1])
    rows["train"][2] = rows["train"][2]._replace(summary=summary)


@pytest.mark.parametrize("options", [{"recompute": 10}, {"recompute": 0, "every_row": True}], ids=["some", "all"])
@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (repeat, ["split train: rows that repeat another: 1"]),
        (
            share,
            ["split train: networks that are in other splits: 1", "split test: networks that are in other splits: 1"],
        ),
        (miscount, ["split train: rows that are not what they say: 1 (at 2)"]),
        (exchange, ["split train: rows that are not what they say: 2 (at 2, 3)"]),
        (sample_with_another_seed, ["split train: rows that are not what they say: 1 (at 2)"]),
        (widen_less, ["split wide: rows that are not what they say: 1 (at 3)"]),
        (rename, ["split train: rows that are not what they say: 1 (at 2)"]),
    ],
)
def test_what_is_wrong_is_said(
    small_project: SmallProject,
    change: Callable[[Rows], object],
    messages: list[str],
    options: dict[str, Any],
) -> None:
    write(small_project(), change)
    with pytest.raises(UserError) as caught:
        verify(small_project(), **options)
    assert str(caught.value).splitlines() == messages


def test_a_damaged_shard_is_named(small_project: SmallProject) -> None:
    write(small_project(), lambda rows: None)
    shard = Path("storage/test/0.parquet")
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"test/0\.parquet is damaged"):
        verify(small_project())


def test_a_shard_with_other_rows_than_the_manifest_says_is_named(small_project: SmallProject) -> None:
    write(small_project(), lambda rows: None)
    MANIFEST.write_text(MANIFEST.read_text().replace('"rows": 4', '"rows": 3'))
    with pytest.raises(UserError, match=r"0\.parquet has 4 rows, not 3 as the manifest says"):
        verify(small_project())
