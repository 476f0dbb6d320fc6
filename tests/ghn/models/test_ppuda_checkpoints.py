"""Checkpoints in the published format, read and written."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from examples import sample, tiny_ghn
from small_settings import ROOT
from torch import Tensor

from ghn import GHN, GHNConfig
from ghn.models.checkpoints import CheckpointError

VARIANTS = ("ghn2", "ghn1", "mlp")
GOLDEN = ROOT / "tests/golden"


def assert_refused(load, path: Path, named: Path, message: str = "") -> None:
    with pytest.raises(CheckpointError) as error:
        load(path)
    assert str(named) in str(error.value)
    assert re.search(message, str(error.value))


# The public format: what our modules are called there, and which of them are 1×1 convolutions.
PUBLIC_NAMES = {
    "encoder.primitives": "embed",
    "encoder.spatial": "shape_enc.embed_spatial",
    "encoder.channels": "shape_enc.embed_channel",
    "gnn.mlp.0": "gnn.mlp.fc.0",
    "gnn.mlp.2": "gnn.mlp.fc.2",
    "gnn.mlp_virtual.0": "gnn.mlp_ve.fc.0",
    "gnn.mlp_virtual.2": "gnn.mlp_ve.fc.2",
    "gnn.gru": "gnn.gru",
    "gnn.0": "gnn.fc.0",
    "gnn.2": "gnn.fc.2",
    "norm": "ln",
    "decoder.weights.expand": "decoder.fc.0",
    "decoder.weights.mix": "decoder.conv.0",
    "decoder.weights.channels": "decoder.conv.2",
    "decoder.weights.classes": "decoder.class_layer_predictor.1",
    "decoder.vectors.mlp.0": "decoder_1d.fc.0",
    "decoder.vectors.mlp.2": "decoder_1d.fc.2",
    "decoder.vectors.classes": "bias_class.1",
}
CONV_1X1_WEIGHTS = ("decoder.weights.mix", "decoder.weights.channels", "decoder.weights.classes")


def public(ghn: GHN) -> dict[str, Any]:
    """Write a checkpoint in the public format."""
    state_dict: dict[str, Tensor] = {}
    for name, weight in ghn.state_dict().items():
        module, _, kind = name.rpartition(".")
        is_convolution = module in CONV_1X1_WEIGHTS and kind == "weight"
        state_dict[f"{PUBLIC_NAMES[module]}.{kind}"] = weight[:, :, None, None] if is_convolution else weight
    config = {
        "max_shape": (2 * ghn.config.hidden, 2 * ghn.config.hidden, ghn.config.kernel, ghn.config.kernel),
        "num_classes": ghn.config.num_classes,
        "hid": ghn.config.hidden,
        "hypernet": "mlp" if ghn.config.variant == "mlp" else "gatedgnn",
        "decoder": "conv",
        "weight_norm": ghn.config.variant != "ghn1",
        "ve": ghn.config.variant != "ghn1",
        "layernorm": ghn.config.variant != "ghn1",
    }
    return {"config": config, "state_dict": state_dict, "epoch": 1}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("kernel", "image_size"), [(3, 32), (16, 224)])
def test_a_public_checkpoint_is_imported(tmp_path: Path, variant: str, kernel: int, image_size: int) -> None:
    ghn = GHN(GHNConfig(num_classes=3, image_size=image_size, variant=variant, hidden=8, kernel=kernel))
    torch.save(public(ghn), tmp_path / "public.pt")
    again = GHN.from_public_checkpoint(tmp_path / "public.pt")
    assert again.config == ghn.config and not again.training
    assert all(torch.equal(again.state_dict()[name], weight) for name, weight in ghn.state_dict().items())


def test_a_file_of_an_early_pytorch_is_imported(tmp_path: Path) -> None:
    ghn = tiny_ghn()
    torch.save(public(ghn), tmp_path / "public.pt", _use_new_zipfile_serialization=False)
    again = GHN.from_public_checkpoint(tmp_path / "public.pt")
    assert all(torch.equal(again.state_dict()[name], weight) for name, weight in ghn.state_dict().items())


@pytest.mark.parametrize("protocol", ["torch", "pickle"])
def test_code_in_a_public_checkpoint_is_refused_and_not_executed(tmp_path: Path, protocol: str) -> None:
    class Code:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "executed",)

    file = tmp_path / "public.pt"
    contents = {**public(tiny_ghn()), "optimizer": Code()}
    if protocol == "torch":
        torch.save(contents, file)
    else:
        file.write_bytes(pickle.dumps(contents, protocol=2))
    assert_refused(GHN.from_public_checkpoint, file, file, "without executing code")
    assert not (tmp_path / "executed").exists()


def test_a_missing_public_checkpoint_is_refused_with_its_name(tmp_path: Path) -> None:
    assert_refused(GHN.from_public_checkpoint, tmp_path / "nothing.pt", tmp_path / "nothing.pt", "not found")


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_truncated_public_checkpoint_is_refused_with_its_name(tmp_path: Path, share: float) -> None:
    file = tmp_path / "public.pt"
    torch.save(public(tiny_ghn()), file)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    assert_refused(GHN.from_public_checkpoint, file, file)


@pytest.mark.parametrize(
    "garbage",
    [
        b"garbage",
        b"PK\x03\x04garbage",
        b"\x80\x02.",  # a pickle that stops with nothing on its stack,
        b"\x80\x02h\x05.",  # one that reads what it has not stored
        b"\x80\x02X\x01\x00\x00\x00\xff.",  # and one whose text is no text
    ],
)
def test_a_public_checkpoint_of_garbage_is_refused_with_its_name(tmp_path: Path, garbage: bytes) -> None:
    file = tmp_path / "public.pt"
    file.write_bytes(garbage)
    assert_refused(GHN.from_public_checkpoint, file, file)


def without(record: dict, key: str) -> dict:
    return {name: value for name, value in record.items() if name != key}


@pytest.mark.parametrize(
    "change",
    [
        lambda public: [public],
        lambda public: without(public, "config"),
        lambda public: without(public, "state_dict"),
        lambda public: {**public, "config": without(public["config"], "max_shape")},
        lambda public: {**public, "config": None},
        lambda public: {**public, "config": {**public["config"], "hid": 12}},
        lambda public: {**public, "config": {**public["config"], "hid": 16}},
        lambda public: {**public, "config": {**public["config"], "num_classes": 4}},
        lambda public: {**public, "config": {**public["config"], "weight_norm": False}},
        lambda public: {**public, "config": {**public["config"], "decoder": "mlp"}},
        lambda public: {**public, "state_dict": without(public["state_dict"], "ln.weight")},
        lambda public: {**public, "state_dict": {**public["state_dict"], "ln.weight": 1.0}},
        lambda public: {**public, "state_dict": {**public["state_dict"], "another": torch.zeros(1)}},
        lambda public: {**public, "state_dict": []},
        lambda public: {**public, "state_dict": {**public["state_dict"], 1: torch.zeros(1)}},
        lambda public: {**public, "config": {**public["config"], "hid": 8_000_000}},
        lambda public: {**public, "state_dict": {**public["state_dict"], "norm.weight": torch.zeros(8)}},
        lambda public: {
            **public,
            "state_dict": {**public["state_dict"], "decoder.conv.0.weight": torch.zeros(64, 32, 3, 3)},
        },
    ],
    ids=[
        "list",
        "no config",
        "no weights",
        "config without kernel",
        "config of nothing",
        "impossible width",
        "another width",
        "another number of classes",
        "virtual edges without normalisation",
        "another decoder",
        "a weight is missing",
        "a weight is a number",
        "a weight too many",
        "weights without names",
        "a weight whose name is a number",
        "a width that no memory holds",
        "a weight under two names",
        "a convolution that is not 1×1",
    ],
)
def test_a_public_checkpoint_that_does_not_fit_is_refused_with_its_name(tmp_path: Path, change) -> None:
    file = tmp_path / "public.pt"
    torch.save(change(public(tiny_ghn())), file)
    assert_refused(GHN.from_public_checkpoint, file, file)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_published_file_comes_back_exactly_from_import_and_export(tmp_path: Path, variant: str) -> None:
    published = torch.load(GOLDEN / f"{variant}.pt", weights_only=True)
    GHN.from_public_checkpoint(GOLDEN / f"{variant}.pt").to_public_checkpoint(tmp_path / "exported.pt")
    exported = torch.load(tmp_path / "exported.pt", weights_only=True)
    assert exported["config"] == published["config"] and exported["epoch"] == published["epoch"]
    assert exported["state_dict"].keys() == published["state_dict"].keys()
    assert all(torch.equal(weight, published["state_dict"][name]) for name, weight in exported["state_dict"].items())


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_exported_ghn_is_imported_as_it_was(tmp_path: Path, variant: str) -> None:
    ghn = GHN(GHNConfig(num_classes=7, image_size=224, variant=variant, hidden=16, kernel=16))
    ghn.to_public_checkpoint(tmp_path / "new" / "exported.pt", epoch=3)
    again = GHN.from_public_checkpoint(tmp_path / "new" / "exported.pt")
    assert again.config == ghn.config
    assert all(torch.equal(again.state_dict()[name], weight) for name, weight in ghn.state_dict().items())
    assert torch.load(tmp_path / "new" / "exported.pt", weights_only=True)["epoch"] == 3
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["exported.pt"]


def test_what_the_published_format_cannot_say_is_not_exported(tmp_path: Path) -> None:
    ghn = GHN(GHNConfig(num_classes=3, image_size=32, hidden=8, kernel=3, virtual_edges=5))
    with pytest.raises(CheckpointError, match="virtual_edges = 5: must be 50"):
        ghn.to_public_checkpoint(tmp_path / "exported.pt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("file", ["ghn2.pt", "ghn1.pt", "mlp.pt"])
@pytest.mark.parametrize("image_size", [32, 224])
def test_an_imported_ghn_predicts_after_a_checkpoint_of_ours_what_it_did_before(
    tmp_path: Path, file: str, image_size: int
) -> None:
    ghn = GHN.from_public_checkpoint(GOLDEN / file)
    ghn.save(tmp_path / "checkpoint")
    again = GHN.from_pretrained(tmp_path / "checkpoint")
    (before,), (after,) = (g.predict_parameters([sample("train", 1)], image_size) for g in (ghn, again))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
