"""Checkpoints: a folder with weights in safetensors and the configuration in JSON; nothing executes code."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ghn.hypernetwork import GHN, GHNConfig

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged or does not fit; the message names the file."""


def save_checkpoint(ghn: GHN, folder: str | Path) -> None:
    """Writes a checkpoint folder whole, in the place of an earlier one; when interrupted, that one stays.

    Raises:
        CheckpointError: the folder is there and holds something else, which would be lost.
    """
    folder = Path(folder).resolve()
    if folder.exists():
        others = {path.name for path in folder.iterdir()} - {WEIGHTS, CONFIG} if folder.is_dir() else {"a file"}
        if others:
            raise CheckpointError(f"{folder} is not a checkpoint (it holds {min(others)}): save to a folder of its own")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        whole = Path(scratch) / "checkpoint"
        whole.mkdir()
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in ghn.state_dict().items()}
        save_file(weights, whole / WEIGHTS)
        (whole / CONFIG).write_text(json.dumps(ghn.config.to_dict(), indent=2) + "\n")
        _replace(folder, whole, Path(scratch) / "before")


def _replace(folder: Path, new: Path, before: Path) -> None:
    """Gives `new` the name `folder`; what had it moves to `before`, and back again if that fails."""
    if not folder.exists():
        new.rename(folder)
        return
    folder.rename(before)
    try:
        new.rename(folder)
    except BaseException:
        before.rename(folder)
        raise


def load_checkpoint(folder: str | Path) -> GHN:
    """The hypernetwork of a checkpoint folder, in evaluation mode.

    Raises:
        CheckpointError: a file is missing, damaged or does not fit the configuration.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name} not found: a checkpoint folder holds {CONFIG} and {WEIGHTS}")
    try:
        config = GHNConfig(**json.loads((folder / CONFIG).read_text()))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / CONFIG} is not a GHN configuration: {error}") from error
    try:
        weights = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise CheckpointError(f"{folder / WEIGHTS} is damaged ({error}): copy or train it again") from error
    return _with_weights(GHN(config), weights, folder / WEIGHTS)


def load_public_checkpoint(path: str | Path) -> GHN:
    """The hypernetwork of a file `{config, state_dict, epoch}` as published with GHN-2, in evaluation mode.

    Raises:
        CheckpointError: the file is missing, needs code to be loaded, or does not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} not found")
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged pickle raises is anybody's guess
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"{path} cannot be loaded without executing code, or is damaged: {reason}") from error
    if not isinstance(contents, dict) or not {"config", "state_dict"} <= contents.keys():
        raise CheckpointError(f"{path} is not a GHN checkpoint: must hold config and state_dict")
    state = contents["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise CheckpointError(f"{path} is not a GHN checkpoint: state_dict must hold tensors by name")
    try:
        config = _our_config(contents["config"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CheckpointError(f"{path} has a configuration that cannot be read: {error!r}") from error
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if tensor.dim() == 4:  # 1×1 convolutions of the published decoders are linear layers here
            if tensor.shape[2:] != (1, 1):
                raise CheckpointError(f"{path}: {name} has shape {tuple(tensor.shape)}, must be a 1×1 convolution")
            tensor = tensor[:, :, 0, 0]
        if _our_name(name) in weights:
            raise CheckpointError(f"{path}: {name} is there twice, under another name too")
        weights[_our_name(name)] = tensor
    return _with_weights(GHN(config), weights, path)


def _our_config(config: dict) -> GHNConfig:
    """Our configuration; ValueError for combinations that are neither GHN-2 nor GHN-1 nor MLP."""
    kernel = config["max_shape"][-1]
    graph_variant = "ghn2" if config["ve"] else "ghn1"
    variant = "mlp" if config["hypernet"] == "mlp" else graph_variant
    expected = {"decoder": "conv", "weight_norm": variant != "ghn1", "layernorm": variant != "ghn1"}
    for key, value in expected.items():
        if config[key] != value:
            raise ValueError(f"{key} = {config[key]!r}: must be {value!r} for {variant}")
    return GHNConfig(
        num_classes=config["num_classes"],
        image_size=224 if kernel > 11 else 32,
        variant=variant,
        hidden=config["hid"],
        kernel=kernel,
    )


PUBLIC_PREFIXES = {
    "embed.": "encoder.primitives.",
    "shape_enc.embed_spatial.": "encoder.spatial.",
    "shape_enc.embed_channel.": "encoder.channels.",
    "gnn.mlp.fc.": "gnn.mlp.",
    "gnn.mlp_ve.fc.": "gnn.mlp_virtual.",
    "gnn.gru.": "gnn.gru.",
    "gnn.fc.": "gnn.",
    "ln.": "norm.",
    "decoder.fc.0.": "decoder.weights.expand.",
    "decoder.conv.0.": "decoder.weights.mix.",
    "decoder.conv.2.": "decoder.weights.channels.",
    "decoder.class_layer_predictor.1.": "decoder.weights.classes.",
    "decoder_1d.fc.": "decoder.vectors.mlp.",
    "bias_class.1.": "decoder.vectors.classes.",
}
"""How the published state dict names what we name otherwise."""


def _our_name(name: str) -> str:
    for theirs, ours in PUBLIC_PREFIXES.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _with_weights(ghn: GHN, weights: dict[str, torch.Tensor], path: Path) -> GHN:
    try:
        ghn.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} does not fit its configuration: {reason}") from error
    return ghn.eval()
