from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from evaluation_examples import ARCHITECTURES

from ghn import Architecture
from pipeline.architectures.deepnets1m_files.checks import with_all_operations
from pipeline.architectures.paper_results import (
    PAPER_EPOCHS,
    import_results,
    read_paper_results,
    require_imported_networks,
    results_of,
)
from pipeline.architectures.shards import row, table_of, write_shard
from pipeline.architectures.store import ArchitectureStore, write_manifest
from pipeline.errors import UserError
from pipeline.params import Params
from pipeline.stages.check import check


def record(architecture: Architecture, position: int, extended: bool = False) -> dict[str, Any]:
    """Return made-up results of an architecture, in the published format."""
    accuracy = 70 + 3 * position
    after = [round(accuracy * (0.5 + 0.1 * budget / 2), 2) for budget in range(len(PAPER_EPOCHS))]
    return {
        "val_acc": after if extended else accuracy,
        "test_acc": after if extended else accuracy - 0.5,
        "val_acc_noise": [50.0] * 6 + [40.0 + position] if extended else 40.0 + position,
        "params": with_all_operations(architecture).num_parameters(8, 10),
        "time": 5.5 + position,
        "converge_time": 2.0 if position == 1 else 0.1 * (position + 1),
        "ghn2_test_acc": 60.0,
    }


def published(architectures: Sequence[Architecture] = ARCHITECTURES, extended: bool = False) -> dict[str, Any]:
    records = {str(index): record(each, index, extended) for index, each in enumerate(architectures)}
    without_training = {"0": {"test_acc": 10.0, "params": 7, "time": 1.0}}  # other splits have fewer properties
    return {"val": records, "test": copy.deepcopy(records), "bnfree": without_training}


def encoded(content: Any) -> bytes:
    return json.dumps(content).encode()


@pytest.fixture
def store(tmp_path: Path) -> ArchitectureStore:
    table = table_of([row(*item) for item in enumerate(ARCHITECTURES)])
    shard = write_shard(str(tmp_path / "val/0.parquet"), table, {})
    manifest = tmp_path / "manifest.json"
    write_manifest(manifest, {split: ("val", [shard]) for split in ("val", "test")})
    return ArchitectureStore(str(tmp_path), manifest)


def test_the_published_format_is_read_with_accuracies_as_shares() -> None:
    results = results_of(encoded(published()), "file").set_index(["split", "index"])
    assert results.index.tolist() == [(split, index) for split in ("val", "test") for index in range(6)]
    first = results.loc["val", 1]
    assert first["top1"] == pytest.approx(0.73)
    assert first["noisy_top1"] == pytest.approx(0.41)
    assert first["predicted_top1"] == pytest.approx(0.6)
    assert (first["seconds"], first["convergence_time"]) == (6.5, 2.0)


def test_the_extended_format_has_an_accuracy_for_each_budget() -> None:
    results = results_of(encoded(published(extended=True)), "file")
    assert [name for name in results if name.startswith("top1")] == [f"top1_after_{epochs}" for epochs in PAPER_EPOCHS]
    assert results["noisy_top1"].tolist()[:6] == pytest.approx([0.40, 0.41, 0.42, 0.43, 0.44, 0.45])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda results: results.pop("test"), "file has no test"),
        (lambda results: results["val"]["2"].pop("converge_time"), "file has no converge_time"),
        (lambda results: results["val"].pop("2"), "indices of split val must be 0 to 4, without a gap"),
        (lambda results: results["val"]["2"].update(val_acc=170), "top1 must be a share, 0 to 1"),
        (lambda results: results["val"]["2"].update(val_acc=float("nan")), "top1"),
        (lambda results: results["val"]["2"].update(val_acc_noise=-1), "noisy_top1 must be a share, 0 to 1"),
        (lambda results: results["val"]["2"].update(val_acc=[1, 2, 3]), "not in the format"),
        (lambda results: results["val"]["2"].update(time=0), "seconds must be finite and above 0"),
        (lambda results: results["val"]["2"].update(converge_time=3), "convergence_time must be above 0, at most 2"),
        (lambda results: results["val"]["2"].update(params=0), "parameters must be a whole number, at least 1"),
        (lambda results: results["val"].update(x=results["val"]["2"]), "not in the format"),
        (lambda results: results.update(val=[1, 2]), "not in the format"),
    ],
)
def test_what_is_not_in_the_published_format_is_refused(change: Callable[[dict], object], expected: str) -> None:
    results = published()
    change(results)
    with pytest.raises(UserError, match=expected):
        results_of(encoded(results), "file")


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(UserError, match="not in the format"):
        results_of(b"PK\x03\x04", "file")


def test_an_import_is_read_from_its_address_which_changes_with_the_content(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, storage = tmp_path / "results.json", str(tmp_path / "storage")
    file.write_bytes(encoded(published()))
    address = import_results(file, storage)
    assert f"published: {address}" in capsys.readouterr().out
    assert len(read_paper_results(storage, address)) == 12
    file.write_bytes(encoded(published(extended=True)))
    assert import_results(file, storage) != address


def test_an_import_that_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    file, storage = tmp_path / "results.json", str(tmp_path / "storage")
    with pytest.raises(UserError, match=r"results.json not found"):
        import_results(file, storage)
    file.write_bytes(encoded(published()))
    address = import_results(file, storage)
    place = tmp_path / "storage" / address
    place.write_bytes(place.read_bytes().replace(b"70", b"71", 1))
    with pytest.raises(UserError, match=f"properties.published = {address} is damaged"):
        read_paper_results(storage, address)
    place.unlink()
    with pytest.raises(UserError, match=r"there is no .*\n.ghn import-results. writes it"):
        read_paper_results(storage, address)


def test_results_of_the_stored_architectures_are_accepted(store: ArchitectureStore) -> None:
    require_imported_networks(results_of(encoded(published()), "file"), store, 8, 10)


def test_results_of_other_architectures_are_refused(store: ArchitectureStore) -> None:
    results = results_of(encoded(published(ARCHITECTURES[::-1])), "file")
    with pytest.raises(
        UserError, match=r"architectures of split \w+ are others\n\w+/0 has \d+ parameters there"
    ) as caught:
        require_imported_networks(results, store, 8, 10)
    assert len(str(caught.value).splitlines()) <= 3


def test_results_of_another_number_of_architectures_are_refused(store: ArchitectureStore) -> None:
    results = results_of(encoded(published(ARCHITECTURES[:-1])), "file")
    with pytest.raises(UserError, match=r"has 5 architectures of split \w+, 6 are stored"):
        require_imported_networks(results, store, 8, 10)


def test_the_check_finds_what_the_settings_name(small_project: Callable[..., Params], store: ArchitectureStore) -> None:
    address = "paper_results/0123456789abcdef.json"
    imported = {split: f"architectures/{split}/imported-0/manifest.json" for split in ("val", "test")}
    with pytest.raises(UserError, match="or split val, whose results they are, must be in"):
        small_project(properties={"published": address})
    params = small_project(properties={"published": address}, generate={"imported": imported})
    for split in ("val", "test"):
        folder = Path("storage/architectures") / split / "imported-0"
        shard = write_shard(str(folder / "0.parquet"), table_of([row(*item) for item in enumerate(ARCHITECTURES)]), {})
        write_manifest(folder / "manifest.json", {split: (f"architectures/{split}/imported-0", [shard])})
    with pytest.raises(UserError, match=f"properties.published = {address}: there is no"):
        check(params)
