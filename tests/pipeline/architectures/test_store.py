from __future__ import annotations

import json
import tempfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghn.deepnets1m.sampling import sample_architecture
from pipeline.architectures.shards import (
    SCHEMA,
    ArchitectureShard,
    find_shard,
    find_shard_without_record,
    row,
    table_of,
    write_shard,
)
from pipeline.architectures.store import ArchitectureStore, Split, write_manifest
from pipeline.errors import UserError

ARCHITECTURES = [sample_architecture(0, "test", index) for index in range(5)]


@pytest.fixture
def store(tmp_path: Path) -> ArchitectureStore:
    """Store five architectures of split test in two shards."""
    folder = tmp_path / "storage/test"
    shards = [
        write_shard(f"{folder}/{first}.parquet", table_of([row(i, ARCHITECTURES[i]) for i in range(first, last)]))
        for first, last in ((0, 3), (3, 5))
    ]
    write_manifest(tmp_path / "manifest.json", {"test": ("test", shards)})
    return ArchitectureStore(str(tmp_path / "storage"), tmp_path / "manifest.json")


def test_rows_come_back_in_order_from_any_shard(store: ArchitectureStore) -> None:
    assert store.networks("test") == ARCHITECTURES
    assert store.read("test", 4) == ARCHITECTURES[4]
    assert len(store["test"]) == 5


def test_columns_describe_the_networks(store: ArchitectureStore) -> None:
    columns = store["test"].columns("parameters", "nodes", "flops", "n_cells")
    assert columns["parameters"].tolist() == [a.num_parameters(32, 10) for a in ARCHITECTURES]
    assert columns["nodes"].tolist() == [len(a.graph(32, 10).nodes) for a in ARCHITECTURES]
    assert columns["n_cells"].tolist() == [a.n_cells for a in ARCHITECTURES]
    assert np.all(columns["flops"] > 0)


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    rows = [row(i, architecture) for i, architecture in enumerate(ARCHITECTURES)]
    first, second = (write_shard(f"{tmp_path}/{name}/0.parquet", table_of(rows)) for name in "ab")
    assert first == second
    assert (tmp_path / "a/0.parquet").read_bytes() == (tmp_path / "b/0.parquet").read_bytes()
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["0.parquet"]  # and nothing half-written


def test_an_earlier_shard_is_found_only_if_it_is_whole(tmp_path: Path) -> None:
    place, other = tmp_path / "0.parquet", str(tmp_path / "1.parquet")
    shard = write_shard(str(place), table_of([row(0, ARCHITECTURES[0])]), {"seed": 0})
    for found in (find_shard(str(place), {"seed": 0}), find_shard_without_record(str(place), 0, 1)):
        assert found is not None
        assert found[0] == shard
        assert found[1].schema == SCHEMA
    assert find_shard(other, {"seed": 0}) is find_shard_without_record(other, 0, 1) is None
    content = place.read_bytes()
    damaged = bytearray(content)
    damaged[len(content) // 4] ^= 255
    for written in (content[: len(content) // 2], bytes(damaged)):
        place.write_bytes(written)
        assert find_shard(str(place), {"seed": 0}) is find_shard_without_record(str(place), 0, 1) is None


@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_noticed_wherever_it_is(position: float, bit: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "0.parquet"
        rows = [row(i, architecture) for i, architecture in enumerate(ARCHITECTURES)]
        write_shard(str(place), table_of(rows), {"seed": 0})
        content = bytearray(place.read_bytes())
        assert find_shard(str(place), {"seed": 0}) and find_shard_without_record(str(place), 0, 5)
        content[int(position * len(content))] ^= 1 << bit
        place.write_bytes(content)
        assert find_shard(str(place), {"seed": 0}) is find_shard_without_record(str(place), 0, 5) is None


def test_a_shard_of_other_rows_is_not_taken(tmp_path: Path) -> None:
    place = str(tmp_path / "0.parquet")
    write_shard(place, table_of([row(i, architecture) for i, architecture in enumerate(ARCHITECTURES)]), {"first": 0})
    assert find_shard(place, {"first": 5}) is find_shard_without_record(place, 5, 10) is None


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """Return 2,500 rows of the same five architectures in two shards, of several row groups each."""
    folder = tmp_path_factory.mktemp("many")
    rows = [row(i, architecture) for i, architecture in enumerate(ARCHITECTURES)]
    shards = []
    for first, last in ((0, 2100), (2100, 2500)):
        table = table_of([rows[i % 5]._replace(position=i) for i in range(first, last)])
        shards.append(write_shard(f"{folder}/{first}.parquet", table))
    return Split("train", str(folder), shards)


def test_any_row_of_any_row_group_is_read(many: Split) -> None:
    for index in (0, 999, 1000, 2099, 2100, 2499):
        assert many.read(index) == ARCHITECTURES[index % 5]
        assert many.row(index, "index")["index"].to_pylist() == [index]
    for index in (-1, 2500):
        with pytest.raises(IndexError, match=f"there is none at {index}"):
            many.read(index)


def test_threads_and_processes_read_at_once(many: Split) -> None:
    indices = list(range(0, 2500, 11))
    expected = [ARCHITECTURES[index % 5] for index in indices]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(many.read, indices)) == expected
    with ProcessPoolExecutor(2, get_context("spawn")) as processes:
        assert list(processes.map(many.read, indices[:20])) == expected[:20]


def test_others_read_the_files_as_they_are(many: Split) -> None:
    files = many.files
    operation = "genotype.normal[1].operation"
    query = f"SELECT {operation}, count(*) FROM read_parquet({files}) WHERE index % 5 = 2 GROUP BY {operation}"
    assert duckdb.sql(query).fetchall() == [(ARCHITECTURES[2].genotype.normal[0][0], 500)]
    first = polars.scan_parquet(files).select(polars.col("genotype").struct.field("normal").list.len()).collect()
    assert first["normal"][:5].to_list() == [len(a.genotype.normal) for a in ARCHITECTURES]
    frame = pd.read_parquet(files)
    assert frame["norm"][:5].isna().tolist() == [architecture.norm is None for architecture in ARCHITECTURES]
    assert frame["genotype"][3]["reduce"][1] == dict(
        zip(("operation", "state"), ARCHITECTURES[3].genotype.reduce[1], strict=True)
    )


def test_every_column_says_what_it_is() -> None:
    assert all(len(field.metadata[b"is"]) > 10 for field in SCHEMA)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), "is missing"),
        (lambda file: file.write_bytes(file.read_bytes()[:-100]), "is damaged"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1] + b"x"), "is damaged"),
        (lambda file: file.write_bytes(b""), "is damaged"),
    ],
)
def test_a_missing_or_damaged_shard_is_named(store: ArchitectureStore, tmp_path: Path, damage, message: str) -> None:
    damage(tmp_path / "storage/test/3.parquet")
    assert store.read("test", 0) == ARCHITECTURES[0]  # the other shard is as good as before
    with pytest.raises(UserError, match=rf"3\.parquet {message}") as caught:
        store.read("test", 4)
    assert len(str(caught.value).splitlines()) <= 3


def test_a_manifest_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    place = tmp_path / "manifest.json"
    with pytest.raises(UserError, match=r"manifest\.json not found"):
        ArchitectureStore(str(tmp_path), place)
    for content in ('{"splits": {"te', "[]", '{"splits": {"test": {"folder": "test"}}}'):
        place.write_text(content)
        with pytest.raises(UserError, match=r"manifest\.json is damaged"):
            ArchitectureStore(str(tmp_path), place)


def test_an_unknown_split_is_refused_with_those_that_there_are(store: ArchitectureStore) -> None:
    with pytest.raises(UserError, match="'train' is not in the manifest: must be one of test"):
        store["train"]


def test_the_predefined_networks_need_no_shard(store: ArchitectureStore) -> None:
    names = store.networks("predefined")
    assert len(names) == 3
    assert store.read("predefined", 1).num_parameters(32, 10) == names[1].num_parameters(32, 10)


def test_the_manifest_says_what_there_is(store: ArchitectureStore, tmp_path: Path) -> None:
    entry = json.loads((tmp_path / "manifest.json").read_text())["splits"]["test"]
    files = sorted((tmp_path / "storage/test").iterdir())
    assert entry["rows"] == 5
    assert entry["bytes"] == sum(file.stat().st_size for file in files)
    assert [shard["file"] for shard in entry["shards"]] == [file.name for file in files]


def test_a_split_without_shards_is_empty() -> None:
    assert len(Split("test", "nowhere", [])) == 0
    assert len(Split("test", "nowhere", [ArchitectureShard("0.parquet", 3, 0, "")])) == 3
