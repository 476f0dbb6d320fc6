from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from examples import CONFIG, sample, tiny_ghn
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ghn import GHN, GHNConfig
from ghn.checkpoints import CheckpointError

VARIANTS = ("ghn2", "ghn1", "mlp")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_ghn().save(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def assert_refused(load, path: Path, named: Path, message: str = "") -> None:
    with pytest.raises(CheckpointError) as error:
        load(path)
    assert str(named) in str(error.value)
    assert re.search(message, str(error.value))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path, variant: str) -> None:
    ghn = tiny_ghn(variant)
    ghn.save(tmp_path / "runs" / "checkpoint")
    again = GHN.from_pretrained(tmp_path / "runs" / "checkpoint")
    assert again.config == ghn.config and not again.training
    assert all(torch.equal(again.state_dict()[name], weight) for name, weight in ghn.state_dict().items())
    (first,), (second,) = (g.predict_parameters([sample("train", 0)]) for g in (ghn, again))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_checkpoint_replaces_the_one_before_it(folder: Path) -> None:
    tiny_ghn("mlp").save(folder)
    assert GHN.from_pretrained(folder).config.variant == "mlp"
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]


def test_an_interrupted_save_leaves_the_checkpoint_before_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ghn.checkpoints.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tiny_ghn("mlp").save(folder)
    assert GHN.from_pretrained(folder).config == CONFIG
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]


def test_a_save_interrupted_at_the_last_moment_leaves_the_checkpoint_before_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        if path.name == "checkpoint" and target == folder:  # not when the one before gets its name back
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tiny_ghn("mlp").save(folder)
    assert GHN.from_pretrained(folder).config == CONFIG
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]


def test_a_folder_with_something_else_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match=r"holds thesis\.txt"):
        tiny_ghn().save(tmp_path)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        tiny_ghn().save(tmp_path / "thesis.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused_with_its_name(folder: Path, name: str, share: float) -> None:
    file = folder / name
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    assert_refused(GHN.from_pretrained, folder, file)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_missing_file_is_refused_with_its_name(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert_refused(GHN.from_pretrained, folder, folder / name, "not found")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@given(garbage=st.binary(max_size=64))
def test_garbage_is_refused_with_its_name(name: str, garbage: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("garbage")
    tiny_ghn().save(folder)
    (folder / name).write_bytes(garbage)
    assert_refused(GHN.from_pretrained, folder, folder / name)


@pytest.mark.parametrize(
    "change",
    [{"hidden": 12}, {"hidden": 8.0}, {"num_classes": "3"}, {"kernel": 1.5}, {"variant": None}, {"layers": 2}],
)
def test_an_impossible_configuration_is_refused_with_its_name(folder: Path, change: dict) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**CONFIG.to_dict(), **change}))
    assert_refused(GHN.from_pretrained, folder, file)


@pytest.mark.parametrize("change", [{"hidden": 16}, {"num_classes": 4}, {"kernel": 5}, {"variant": "ghn1"}])
def test_weights_of_another_shape_are_refused_with_their_file(folder: Path, change: dict) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG.to_dict(), **change}))
    assert_refused(GHN.from_pretrained, folder, folder / "model.safetensors", "does not fit")


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
CONVOLUTIONS = ("decoder.weights.mix", "decoder.weights.channels", "decoder.weights.classes")


def public(ghn: GHN) -> dict[str, Any]:
    """A checkpoint in the public format."""
    state_dict: dict[str, Tensor] = {}
    for name, weight in ghn.state_dict().items():
        module, _, kind = name.rpartition(".")
        is_convolution = module in CONVOLUTIONS and kind == "weight"
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
        "a weight under two names",
        "a convolution that is not 1×1",
    ],
)
def test_a_public_checkpoint_that_does_not_fit_is_refused_with_its_name(tmp_path: Path, change) -> None:
    file = tmp_path / "public.pt"
    torch.save(change(public(tiny_ghn())), file)
    assert_refused(GHN.from_public_checkpoint, file, file)
