"""Checkpoints of GHN-3 and LoGAH as they were published: with settings, or weights alone in a pickle of joblib."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import joblib
import pytest
import torch
from small_settings import ROOT

from ghn import GHN, GHNConfig
from ghn.models.checkpoints import CheckpointError
from ghn.models.config import GHN3_SIZES

PUBLISHED = ROOT / "tests/golden/ghn3.pt"
LOW_RANK = ROOT / "tests/golden/logah.pt"
UNUSED = ("decoder.l1.", "decoder_1d.", "bias_class.")


def published(file: Path = PUBLISHED) -> dict[str, Any]:
    contents: dict[str, Any] = torch.load(file, weights_only=True)
    return contents


def same_weights(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_published_file_comes_back_exactly_from_import_and_export(tmp_path: Path) -> None:
    GHN.from_public_checkpoint(PUBLISHED).to_public_checkpoint(tmp_path / "exported.pt")
    exported = torch.load(tmp_path / "exported.pt", weights_only=True)
    assert (exported["config"], exported["epoch"]) == (published()["config"], published()["epoch"])
    assert same_weights(exported["state_dict"], published()["state_dict"])


def test_a_published_low_rank_file_comes_back_but_for_what_it_does_not_use(tmp_path: Path) -> None:
    GHN.from_public_checkpoint(LOW_RANK).to_public_checkpoint(tmp_path / "exported.pt")
    exported, expected = torch.load(tmp_path / "exported.pt", weights_only=True), published(LOW_RANK)
    assert exported["config"] == expected["config"]
    assert {name: weight.shape for name, weight in exported["state_dict"].items()} == {
        name: weight.shape for name, weight in expected["state_dict"].items()
    }
    used = [name for name in expected["state_dict"] if not name.startswith(UNUSED)]
    assert all(torch.equal(exported["state_dict"][name], expected["state_dict"][name]) for name in used)


def test_a_low_rank_file_whose_copies_differ_is_refused(tmp_path: Path) -> None:
    contents = published(LOW_RANK)
    contents["state_dict"]["decoder.seq.1.bias"] = contents["state_dict"]["decoder.l2.bias"] + 1
    torch.save(contents, tmp_path / "logah.pt")
    with pytest.raises(CheckpointError, match=r"decoder.seq.1.bias differs from decoder.l2.bias"):
        GHN.from_public_checkpoint(tmp_path / "logah.pt")


@pytest.mark.parametrize("collection", [dict, OrderedDict])
def test_weights_alone_in_a_pickle_of_joblib_say_what_they_are(tmp_path: Path, collection: type) -> None:
    joblib.dump(collection(published()["state_dict"]), tmp_path / "ghn3.pt")
    ghn, expected = GHN.from_public_checkpoint(tmp_path / "ghn3.pt"), GHN.from_public_checkpoint(PUBLISHED)
    assert ghn.config == expected.config == GHNConfig(10, 32, "ghn3", 32, 11, layers=2, heads=8)
    assert same_weights(ghn.state_dict(), expected.state_dict())


@pytest.mark.parametrize("name", ["ghn3_t", "ghn3_s"])
def test_the_sizes_of_published_hypernetworks_are_read_off_their_weights(tmp_path: Path, name: str) -> None:
    config = GHNConfig(5, 224, "ghn3", kernel=16, **GHN3_SIZES[name])
    GHN(config).to_public_checkpoint(tmp_path / "ghn3.pt")
    joblib.dump(torch.load(tmp_path / "ghn3.pt", weights_only=True)["state_dict"], tmp_path / "alone.pt")
    assert GHN.from_public_checkpoint(tmp_path / "alone.pt").config == config


def test_a_pickle_that_names_anything_else_is_refused_and_nothing_of_it_runs(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "executed",)

    file = tmp_path / "ghn3.pt"
    joblib.dump({**published()["state_dict"], "more": Code()}, file)
    with pytest.raises(CheckpointError, match=r"ghn3\.pt cannot be loaded without executing code: it names pathlib"):
        GHN.from_public_checkpoint(file)
    assert not (tmp_path / "executed").exists()


def test_code_inside_the_bytes_of_a_storage_does_not_run_either(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "executed",)

    class Storage:
        def __reduce__(self) -> tuple:
            return torch.storage._load_from_bytes, (pickle.dumps(Code()),)

    file = tmp_path / "ghn3.pt"
    file.write_bytes(pickle.dumps({"gnn.0.attn.x": Storage()}))
    with pytest.raises(CheckpointError, match="without executing code"):
        GHN.from_public_checkpoint(file)
    assert not (tmp_path / "executed").exists()


def test_a_pickle_cannot_change_the_functions_that_build_tensors(tmp_path: Path) -> None:
    """Opcode BUILD sets attributes of what a pickle names."""
    before = torch._utils._rebuild_tensor_v2.__defaults__
    names = b"ctorch._utils\n_rebuild_tensor_v2\n"
    state = pickle.dumps((None, {"__defaults__": ({"neg": True},)}), protocol=2)[2:-1]
    (tmp_path / "ghn3.pt").write_bytes(b"\x80\x02" + names + state + b"b.")
    with pytest.raises(CheckpointError):
        GHN.from_public_checkpoint(tmp_path / "ghn3.pt")
    assert torch._utils._rebuild_tensor_v2.__defaults__ == before


def test_a_tensor_that_claims_more_numbers_than_it_has_is_refused(tmp_path: Path) -> None:
    state = {**published()["state_dict"], "embed.weight": torch.zeros(1).expand(15, 10**9)}
    joblib.dump(state, tmp_path / "ghn3.pt")
    with pytest.raises(CheckpointError, match=r"embed.weight has shape \(15, 1000000000\), but not as many numbers"):
        GHN.from_public_checkpoint(tmp_path / "ghn3.pt")


@pytest.mark.parametrize("change", [{"weight_norm": False}, {"layernorm": False}, {"ve": False}])
def test_a_published_file_of_other_parts_is_refused(tmp_path: Path, change: dict[str, bool]) -> None:
    contents = published()
    torch.save({**contents, "config": contents["config"] | change}, tmp_path / "ghn3.pt")
    with pytest.raises(CheckpointError, match=f"{next(iter(change))} = False: must be true"):
        GHN.from_public_checkpoint(tmp_path / "ghn3.pt")


def test_a_weight_under_two_names_is_refused(tmp_path: Path) -> None:
    state = published()["state_dict"]
    joblib.dump({**state, "norm.weight": state["ln.weight"]}, tmp_path / "ghn3.pt")
    with pytest.raises(CheckpointError, match=r"norm.weight is there twice"):
        GHN.from_public_checkpoint(tmp_path / "ghn3.pt")


def test_low_rank_weights_alone_do_not_say_enough(tmp_path: Path) -> None:
    joblib.dump(published(LOW_RANK)["state_dict"], tmp_path / "logah.pt")
    with pytest.raises(CheckpointError, match="do not say its number of classes"):
        GHN.from_public_checkpoint(tmp_path / "logah.pt")


@pytest.mark.parametrize("missing", ["embed.weight", "gnn.0.attn.proj_e.2.weight", "decoder.conv.2.weight", "ln.bias"])
def test_weights_that_are_not_all_there_are_refused_with_the_name_of_the_file(tmp_path: Path, missing: str) -> None:
    state = {name: tensor for name, tensor in published()["state_dict"].items() if name != missing}
    joblib.dump(state, tmp_path / "ghn3.pt")
    with pytest.raises(CheckpointError, match=r"ghn3\.pt"):
        GHN.from_public_checkpoint(tmp_path / "ghn3.pt")


def test_what_the_published_format_cannot_say_is_not_exported(tmp_path: Path) -> None:
    for changes in ({"kernel": 5}, {"virtual_edges": 7}, {"normalise": False}, {"dirac": True}):
        ghn = GHN(GHNConfig(**{"num_classes": 3, "image_size": 32, "variant": "ghn3", "hidden": 8, **changes}))
        with pytest.raises(CheckpointError, match="for the published format"):
            ghn.to_public_checkpoint(tmp_path / "exported.pt")
    assert not list(tmp_path.iterdir())
