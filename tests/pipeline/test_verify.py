from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ghn.sampling import sample_architecture, widen
from pipeline.architecture_store import Row, row, table_of, write_manifest, write_shard
from pipeline.errors import UserError
from pipeline.verify import verify

ARCHITECTURES = {split: [sample_architecture(0, split, index) for index in range(4)] for split in ("train", "test")}

Rows = dict[str, list[Row]]


def write(folder: Path, change: Callable[[Rows], object]) -> tuple[str, Path]:
    """A storage and a manifest of a few rows after a change."""
    rows = {
        split: [row(index, architecture, 0, 0) for index, architecture in enumerate(architectures)]
        for split, architectures in ARCHITECTURES.items()
    }
    rows["wide"] = [
        row(index, widen(architecture, 32), 0, 0) for index, architecture in enumerate(ARCHITECTURES["test"])
    ]
    change(rows)
    shards = {
        split: [write_shard(f"{folder}/{split}/0.parquet", table_of(of_split))] for split, of_split in rows.items()
    }
    write_manifest(folder / "manifest.json", {split: (split, of_split) for split, of_split in shards.items()})
    return str(folder), folder / "manifest.json"


def test_what_was_drawn_is_verified_split_by_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verify(*write(tmp_path, lambda rows: None))
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert [line for line in lines if line and line[0] in ("train", "test", "wide")] == [
        [split, "4", "0", "0", "4", "0"] for split in ("train", "test", "wide")
    ]


def repeat(rows: Rows) -> None:
    rows["train"].append(row(4, ARCHITECTURES["train"][1]))


def share(rows: Rows) -> None:
    rows["test"].append(row(4, ARCHITECTURES["train"][1]))


def miscount(rows: Rows) -> None:
    rows["train"][2] = rows["train"][2]._replace(parameters_large=1)


def exchange(rows: Rows) -> None:
    """What was drawn for one index is stored under another."""
    rows["train"][2:] = [row(2, ARCHITECTURES["train"][3], 0, 0), row(3, ARCHITECTURES["train"][2], 0, 0)]


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (repeat, ["split train holds 1 networks twice"]),
        (share, ["split train shares 1 networks with other splits", "split test shares 1 networks with other splits"]),
        (miscount, [r"split train has 1 rows that are not what they say: at 2"]),
        (exchange, [r"split train has 2 rows that are not what they say: at 2, 3"]),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, change: Callable[[Rows], object], messages: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        verify(*write(tmp_path, change))
    assert str(caught.value).splitlines() == messages


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    storage, manifest = write(tmp_path, lambda rows: None)
    shard = tmp_path / "test/0.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"test/0\.parquet is damaged"):
        verify(storage, manifest)
