"""Import of the golden DeepNets-1M files, whole and damaged."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import h5py
import numpy as np
import pytest
from small_settings import ROOT

from ghn import Architecture, Genotype
from ghn.networks.graph import PRIMITIVES
from pipeline.architectures.deepnets1m_files.checks import Disagreement, check_graph, count_parameters
from pipeline.architectures.deepnets1m_files.files import PpudaGraph
from pipeline.architectures.import_split import import_deepnets
from pipeline.architectures.splits import store_architectures
from pipeline.architectures.store import ArchitectureStore
from pipeline.errors import UserError
from pipeline.params import Params
from pipeline.stages.check import check

HDF5 = ROOT / "tests/golden/deepnets1m_train.hdf5"
METADATA = ROOT / "tests/golden/deepnets1m_train_meta.json"
RECORDS = json.loads(METADATA.read_text())["train"]["nets"]
ARCHITECTURES = [Architecture.from_dict(record) for record in RECORDS]
FIRST = 5
"""Rows that are enough where the fault is in one of them."""

Damage = Callable[[h5py.Group, list[Any]], None]


class Files:
    """The first rows of the golden files, to be damaged, and a storage to import them to."""

    def __init__(self, folder: Path):
        self.hdf5, self.metadata, self.storage = folder / "nets.hdf5", folder / "nets.json", str(folder / "storage")

    def write(self, damage: Damage = lambda graphs, records: None, rows: int = FIRST, name: str = "train") -> Files:
        contents = json.loads(METADATA.read_text())["train"]
        contents["nets"] = contents["nets"][:rows]
        with h5py.File(HDF5) as golden, h5py.File(self.hdf5, "w") as file:
            graphs = file.create_group(name)
            for index in range(rows):
                golden.copy(f"train/{index}", graphs)
            damage(graphs, contents["nets"])
        self.metadata.write_text(json.dumps({name: contents}))
        return self

    def load(self, split: str = "train", **options: Any) -> str:
        return import_deepnets(self.hdf5, self.metadata, split, self.storage, **options)

    def refusal(self, **options: Any) -> str:
        """Return the error of an import that is refused, and assert that it has written nothing."""
        with pytest.raises(UserError) as caught:
            self.load(**options)
        assert len(str(caught.value).splitlines()) <= 3
        assert not [file for file in Path(self.storage).rglob("*") if file.is_file()]
        return str(caught.value)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def open_import(storage: str, address: str) -> ArchitectureStore:
    return ArchitectureStore(storage, f"{storage}/{address}")


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def replace(graphs: h5py.Group, name: str, value: np.ndarray) -> None:
    del graphs[name]
    graphs[name] = value


def read(graphs: h5py.Group, index: int) -> tuple[np.ndarray, np.ndarray]:
    return graphs[f"{index}/adj"][()], graphs[f"{index}/nodes"][()]


def test_the_golden_files_are_imported_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address = import_deepnets(HDF5, METADATA, "train", str(tmp_path))
    store = open_import(str(tmp_path), address)
    assert store.networks("train") == ARCHITECTURES
    others = {path.name for path in (tmp_path / address).parent.iterdir() if path.suffix != ".parquet"}
    assert others == {"manifest.json", "records"}
    columns = store["train"].columns("index", "identity", "nodes")
    assert columns["index"].tolist() == list(range(20))
    assert columns["identity"].tolist() == [architecture.network_hash for architecture in ARCHITECTURES]
    assert columns["nodes"].tolist() == [record["num_nodes"] for record in RECORDS]
    numbers, *_, setting = capsys.readouterr().out.splitlines()[-6:]
    assert [text.strip() for text in numbers.split("│")[1:6]] == ["train", "20", "20", "0", "0"]
    assert setting == f"  imported: {{train: {address}}}"


def test_published_numbers_of_parameters_are_those_before_pruning_with_ten_classes() -> None:
    pruned = []
    for index, (record, architecture) in enumerate(zip(RECORDS, ARCHITECTURES, strict=True)):
        for name, size in (("cifar10", 32), ("imagenet", 224)):
            for classes in (10, 1000):
                count = count_parameters(architecture, architecture.compile(size, classes))
                assert count == record["num_params"][name]
            if count != architecture.num_parameters(size, 10):
                assert count > architecture.num_parameters(size, 10)
                pruned.append(index)
    assert pruned == [7, 7, 11, 11]


def test_distances_are_cut_as_the_published_generator_does() -> None:
    cell = (("sep_conv_5x5", 1), ("sep_conv_3x3", 1))
    long = Architecture(Genotype(cell, (2,), cell, (2,)), n_cells=36)
    graph = long.graph(32, 10)
    nodes = np.zeros((len(graph.nodes), 3), dtype=np.uint16)
    names = (*PRIMITIVES, "conv_1x1")
    nodes[:, 0] = [
        names.index("conv_1x1" if node.primitive == "conv" and node.shape[2:] == (1, 1) else node.primitive)
        for node in graph.nodes
    ]
    assert graph.distances.max() > 255
    cut = np.where(graph.distances > 250, 0, graph.distances).astype(np.uint8)
    check_graph(PpudaGraph(cut, nodes), graph, dict(enumerate(names)))
    with pytest.raises(Disagreement, match="must be 0 to 250"):
        check_graph(PpudaGraph(graph.distances, nodes), graph, dict(enumerate(names)))


def group_nodes_by_cell(graphs: h5py.Group, records: list[Any]) -> None:
    """Group nodes by cell, as the public generator does with current libraries."""
    _, nodes = read(graphs, 3)
    replace(graphs, "3/nodes", nodes[np.argsort(nodes[:, 1], kind="stable")])


def lose_msa_nodes(graphs: h5py.Group, records: list[Any]) -> None:
    distances, nodes = read(graphs, 0)
    kept = np.delete(np.arange(len(nodes)), np.flatnonzero(nodes[:, 0] == 7)[:3])
    replace(graphs, "0/adj", distances[np.ix_(kept, kept)])
    replace(graphs, "0/nodes", nodes[kept])


def exchange_primitives(graphs: h5py.Group, records: list[Any]) -> None:
    _, nodes = read(graphs, 1)
    nodes[np.flatnonzero(nodes[:, 0] == 5)[:2], 0] = 6
    replace(graphs, "1/nodes", nodes)


def set_distance(old: int, new: int, rows: int = 1) -> Damage:
    def damage(graphs: h5py.Group, records: list[Any]) -> None:
        for index in range(rows):
            distances, _ = read(graphs, index)
            source, target = np.argwhere(distances == old)[0]
            distances[source, target] = new
            replace(graphs, f"{index}/adj", distances)

    return damage


def move_an_edge(graphs: h5py.Group, records: list[Any]) -> None:
    distances, _ = read(graphs, 1)
    source, target = np.argwhere(distances == 1)[10]
    distances[source, target], distances[source, target + 3] = 0, 1
    replace(graphs, "1/adj", distances)


def reverse_order(graphs: h5py.Group, records: list[Any]) -> None:
    distances, nodes = read(graphs, 4)
    replace(graphs, "4/adj", distances[::-1, ::-1])
    replace(graphs, "4/nodes", nodes[::-1])


def unknown_primitive(graphs: h5py.Group, records: list[Any]) -> None:
    _, nodes = read(graphs, 2)
    nodes[5, 0] = 99
    replace(graphs, "2/nodes", nodes)


def drop_last_node(graphs: h5py.Group, records: list[Any]) -> None:
    replace(graphs, "2/nodes", read(graphs, 2)[1][:-1])


def change_record(index: int, **fields: Any) -> Damage:
    return lambda graphs, records: records[index].update(fields)


def delete(name: str) -> Damage:
    return lambda graphs, records: graphs.__delitem__(name)


def set_record(index: int, record: Any) -> Damage:
    return lambda graphs, records: records.__setitem__(index, record)


def repeat_row(graphs: h5py.Group, records: list[Any]) -> None:
    graphs.copy("3", graphs, name="5")
    records.append(records[3])


def one_graph_too_many(graphs: h5py.Group, records: list[Any]) -> None:
    graphs.copy("1", graphs, name="5")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (group_nodes_by_cell, "row 3: its nodes are in another order than the rows of adj"),
        (lose_msa_nodes, "row 0: its graph lacks 3 msa nodes"),
        (exchange_primitives, "row 1: its graph lacks 2 bn nodes and has 2 ln nodes too many"),
        (set_distance(5, 7), "row 0: 1 of 10304 distances differ"),
        (set_distance(1, 2), "row 0: its graph has 177 edges, but its record gives 178"),
        (set_distance(2, 251), "row 0: adj holds 0 to 251: must be 0 to 250"),
        (move_an_edge, "row 1: its graph has edges between other nodes than its record gives (104 in both)"),
        (reverse_order, "row 4: its nodes are in no topological order: there is a path from 1 to 0"),
        (unknown_primitive, "row 2: node 5 has the unknown primitive 99 (not in primitives_ext)"),
        (drop_last_node, "row 2: adj has the shape (116, 116), but nodes has 115 rows"),
        (delete("2/nodes"), "row 2: /train/2/nodes is missing in the HDF5 file"),
        (delete("4"), "row 4: /train/4/adj is missing in the HDF5 file"),
        (lambda graphs, records: replace(graphs, "1/adj", np.ones((88, 88))), "row 1: adj holds float64"),
        (lambda graphs, records: replace(graphs, "1/nodes", np.ones(88, int)), "row 1: nodes has the shape (88,)"),
        (one_graph_too_many, "row 5: the JSON file has no record of it"),
        (repeat_row, "row 5: the same network as row 3"),
        (change_record(2, n_cells=0), "row 2: its record is no architecture: n_cells = 0: must be at least 1"),
        (change_record(2, genotype=3), "row 2: its record is no architecture: a field is of a wrong type"),
        (set_record(0, {"n_cells": 3}), "row 0: its record is no architecture: architecture record without genotype"),
        (set_record(1, "resnet50"), "row 1: its record is no architecture: no object with fields"),
        (change_record(0, dropout=0.5), "row 0: its record has the unknown field dropout"),
        (
            change_record(0, genotype=RECORDS[0]["genotype"] | {"a": 1}),
            "row 0: its record has the unknown field genotype.a",
        ),
        (change_record(0, num_nodes=7), "row 0: num_nodes = 7, but its record gives 156 nodes"),
        (change_record(0, num_params={"cifar10": 9}), "row 0: num_params.cifar10 = 9, but its record gives 453866"),
        (change_record(0, num_params={"imagenet": 9}), "row 0: num_params.imagenet = 9, but its record gives 479978"),
        (change_record(0, num_params={"mnist": 9}), "row 0: its record has the unknown field num_params.mnist"),
        (change_record(0, n_cells=10), "row 0: num_nodes = 156, but its record gives"),
    ],
)
def test_a_row_that_disagrees_is_named_and_nothing_imported(files: Files, damage: Damage, reason: str) -> None:
    message = files.write(damage).refusal()
    assert message.startswith(f"1 of {6 if 'row 5' in reason else 5} rows of {files.hdf5} are not as they should be")
    assert reason in message
    assert "--keep-disagreeing" in message


def test_a_refusal_names_the_first_rows_of_many(files: Files) -> None:
    message = files.write(set_distance(5, 7, rows=4)).refusal(shard_rows=2)
    assert "4 of 5 rows" in message
    assert "row 2: 1 of" in message and "row 3" not in message and "; …" in message


def test_shards_before_the_first_fault_do_not_stay(files: Files) -> None:
    message = files.write(change_record(4, num_nodes=7)).refusal(shard_rows=2)
    assert "row 4" in message


def test_a_name_of_other_versions_of_the_files_is_understood(files: Files) -> None:
    def rename(name: str) -> str:
        return {"conv": "conv_3x3", "bias": "fc-b", "conv_1x1": name}.get(
            name, f"{name}_3x3" if "pool" in name else name
        )

    files.write(name="bnfree")
    contents = json.loads(files.metadata.read_text())
    primitives = contents["bnfree"]["meta"]["primitives_ext"]
    contents["bnfree"]["meta"]["primitives_ext"] = {number: rename(name) for number, name in primitives.items()}
    contents = {"other": {"nets": [{"a": [1, {}]}], "meta": None}} | contents
    files.metadata.write_text(json.dumps(contents))
    assert open_import(files.storage, files.load("bn_free")).networks("bn_free") == ARCHITECTURES[:FIRST]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda files: files.hdf5.unlink(), "nets.hdf5 not found"),
        (lambda files: files.metadata.unlink(), "nets.json not found"),
        (
            lambda files: files.hdf5.write_bytes(HDF5.read_bytes()[:-5000]),
            "nets.hdf5 is no HDF5 file, or not all of one",
        ),
        (lambda files: files.hdf5.write_text("adj"), "nets.hdf5 is no HDF5 file, or not all of one"),
        (lambda files: files.metadata.write_text(METADATA.read_text()[:9000]), "is not the JSON file of DeepNets-1M"),
        (lambda files: files.metadata.write_bytes(HDF5.read_bytes()), "is not the JSON file of DeepNets-1M"),
        (lambda files: files.metadata.write_text("[]"), "has no split train: it has none"),
        (
            lambda files: files.metadata.write_text('{"train": {"nets": []}}'),
            "train.meta.primitives_ext must hold the names of primitives",
        ),
        (lambda files: files.metadata.write_text('{"val": {"nets": []}}'), "has no split train: it has val"),
        (lambda files: files.write(rows=0), "has no rows to import"),
        (lambda files: shutil.copy(METADATA, files.metadata) and files.hdf5.write_bytes(b""), "is no HDF5 file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(files: Files, damage: Callable[[Files], None], message: str) -> None:
    files.write()
    damage(files)
    assert message in files.refusal()


def test_files_of_different_splits_are_refused(files: Files) -> None:
    files.write(name="val")
    with h5py.File(files.hdf5, "a") as file:
        file.move("val", "test")
    assert "nets.hdf5 has no split val: it has test" in files.refusal(split="val")


def test_the_widened_split_cannot_be_imported(files: Files) -> None:
    message = files.write().refusal(split="wide")
    assert message == "split 'wide' cannot be imported: must be one of train, val, test, deep, dense, bn_free"


def test_without_h5py_the_extra_is_named(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write()
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert 'pip install -e ".[pipeline,deepnets]"' in files.refusal()


def damage_four_rows(graphs: h5py.Group, records: list[Any]) -> None:
    set_distance(5, 7)(graphs, records)
    records[1]["ks"] = 4
    del graphs["2/adj"]
    repeat_row(graphs, records)


def test_disagreeing_rows_are_imported_when_asked_for_but_no_invalid_or_repeated_one(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    files.write(damage_four_rows)
    assert "4 of 6 rows" in files.refusal(shard_rows=3)
    address = files.load(keep_disagreeing=True, shard_rows=3)
    store = open_import(files.storage, address)
    assert store.networks("train") == [ARCHITECTURES[index] for index in (0, 2, 3, 4)]
    assert store["train"].columns("index")["index"].tolist() == [0, 1, 2, 3]
    assert [shard.rows for shard in store["train"].shards] == [3, 1]
    with (Path(files.storage) / address).with_name("disagreeing.csv").open() as file:
        assert list(csv.DictReader(file)) == [
            {"index": "0", "imported": "True", "reason": "1 of 10304 distances differ"},
            {"index": "1", "imported": "False", "reason": "its record is no architecture: ks = 4: must be 3, 5 or 7"},
            {"index": "2", "imported": "True", "reason": "/train/2/adj is missing in the HDF5 file"},
            {"index": "5", "imported": "False", "reason": "the same network as row 3"},
        ]
    numbers = capsys.readouterr().out.splitlines()[-6]
    assert [text.strip() for text in numbers.split("│")[1:6]] == ["train", "6", "4", "3", "1"]


def test_a_file_of_invalid_records_alone_is_refused_even_if_asked_for(files: Files) -> None:
    files.write(lambda graphs, records: [record.update(ks=4) for record in records])
    assert "5 of 5 rows" in files.refusal(keep_disagreeing=True)


@pytest.mark.parametrize("keep", [False, True])
def test_an_interrupted_import_goes_on_where_it_was(files: Files, keep: bool) -> None:
    options = {"shard_rows": 2, "keep_disagreeing": keep}
    manifest = Path(files.storage) / files.write().load(**options)
    written = contents(manifest.parent)
    first, second, last = sorted(manifest.parent.glob("*.parquet"))
    manifest.unlink()
    last.unlink()
    second.write_bytes(written[second][:-200])
    kept = first.stat().st_mtime_ns
    files.load(**options)
    assert contents(manifest.parent) == written
    assert first.stat().st_mtime_ns == kept


def test_another_file_or_option_is_imported_beside_the_first(files: Files) -> None:
    addresses = [files.write().load(), files.load(), files.load(shard_rows=2), files.load(keep_disagreeing=True)]
    addresses += [files.write(rows=4).load()]
    assert addresses[0] == addresses[1]
    assert len(set(addresses)) == 4
    for address in addresses:
        store = open_import(files.storage, address)
        assert store.networks("train") == ARCHITECTURES[: len(store["train"])]


def test_a_bucket_takes_an_import_and_keeps_none_that_is_refused(files: Files, bucket: str) -> None:
    files.storage = bucket
    address = files.write().load(shard_rows=2)
    assert open_import(bucket, address).networks("train") == ARCHITECTURES[:FIRST]
    assert files.load(shard_rows=2) == address
    before = fsspec.filesystem("s3").find(bucket)
    files.write(change_record(4, num_nodes=7))
    with pytest.raises(UserError, match="1 of 5 rows"):
        files.load(shard_rows=2)
    fsspec.filesystem("s3").invalidate_cache()
    assert fsspec.filesystem("s3").find(bucket) == before


def imported_project(
    small_project: Callable[..., Params], files: Files, splits: tuple[str, ...], **counts: Any
) -> Params:
    """Make a project whose settings import the first golden rows as these splits."""
    files.storage = "storage"
    imported = {split: files.write(name=split).load(split, shard_rows=3) for split in splits}
    return small_project(generate={"imported": imported} | counts)


def test_an_imported_split_takes_the_place_of_a_sampled_one_and_the_others_stay_the_same(
    ray_on_this_machine: None, small_project: Callable[..., Params], files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    store_architectures(small_project())
    before = ArchitectureStore("storage")
    params = imported_project(small_project, files, ("train",))
    check(params)
    store_architectures(params)
    store = ArchitectureStore("storage")
    assert store.networks("train") == ARCHITECTURES[:FIRST]
    assert list(store.splits) == list(before.splits)
    for split in store.splits.keys() - {"train"}:
        assert store.networks(split) == before.networks(split)
    assert store.digest != before.digest
    assert "which are both imported" not in caplog.text


def test_the_widened_split_is_made_from_an_imported_test_split(
    ray_on_this_machine: None, small_project: Callable[..., Params], files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    store_architectures(small_project())
    store_architectures(imported_project(small_project, files, ("val", "test"), wide=4))
    store = ArchitectureStore("storage")
    assert store.networks("wide") == [a.with_width(128, a.fc_dim) for a in ARCHITECTURES[:4]]
    assert "5 architectures are in split val and in test, which are both imported" in caplog.text
    store_architectures(small_project())
    assert ArchitectureStore("storage").networks("wide") != store.networks("wide")[:2]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda manifest: manifest.unlink(), r"imported\.test = \S+manifest\.json: there is no \S+manifest\.json"),
        (lambda manifest: manifest.write_text("{"), r"imported\.test = \S+manifest\.json is damaged"),
        (lambda manifest: manifest.write_text("[]"), r"imported\.test = \S+manifest\.json is damaged"),
        (
            lambda manifest: manifest.write_text(manifest.read_text().replace('"test": {', '"val": {')),
            "its splits are val; must be an import of test",
        ),
        (lambda manifest: next(manifest.parent.glob("*.parquet")).unlink(), "parquet of an import is missing"),
        (lambda manifest: next(manifest.parent.glob("*.parquet")).write_bytes(b"PAR1"), "is missing or not whole"),
    ],
)
def test_an_import_that_is_not_there_or_damaged_stops_check_and_generate(
    small_project: Callable[..., Params], files: Files, damage: Callable[[Path], None], message: str
) -> None:
    params = imported_project(small_project, files, ("test",))
    check(params)
    damage(Path("storage") / params.generate.imported["test"])
    for stage in (check, store_architectures):
        with pytest.raises(UserError, match=message) as caught:
            stage(params)
        assert len(str(caught.value).splitlines()) <= 3


def test_an_imported_test_split_must_be_as_large_as_what_is_made_from_it(
    small_project: Callable[..., Params], files: Files
) -> None:
    with pytest.raises(UserError, match=r"generate\.wide = 6: must be at most 5, as split test is imported"):
        check(imported_project(small_project, files, ("test",), wide=6))
    check(imported_project(small_project, files, ("test",), wide=5, test=1))


@pytest.mark.parametrize(
    ("split", "settings", "message"),
    [
        (
            "val",
            {"architectures": {"val": 6}},
            r"sgd\.architectures\.val = 6: must be at most 5, as split val is imported",
        ),
        ("train", {"sources": 6}, r"sgd\.sources = 6: must be at most 5, as split train is imported"),
    ],
)
def test_an_imported_split_must_have_as_many_architectures_as_sgd_trains(
    small_project: Callable[..., Params], files: Files, split: str, settings: dict, message: str
) -> None:
    imported = imported_project(small_project, files, (split,)).generate.imported
    with pytest.raises(UserError, match=message):
        check(small_project(generate={"imported": imported}, sgd=settings))
