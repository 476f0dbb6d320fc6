"""Checkpoints in the format that was published with GHN-2, `torch.save` of `{config, state_dict, epoch}`.

Source of the format: the checkpoints that accompany Knyazev et al., NeurIPS 2021. Nothing in them is executed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ghn.models.checkpoints import CheckpointError
from ghn.models.config import GHNConfig

PPUDA_VIRTUAL_EDGES = 50
"""The longest virtual edge of all published checkpoints; it is not in the file."""


def read_ppuda_checkpoint(path: str | Path) -> tuple[GHNConfig, dict[str, Tensor]]:
    """Return the configuration and the weights of a file `{config, state_dict, epoch}` as published with GHN-2.

    Raises:
        CheckpointError: the file is missing, needs code to be loaded, or does not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} not found")
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged pickle raises is anybody's guess
        raise CheckpointError(
            f"{path} cannot be loaded without executing code, or is no file of torch.save, or damaged"
        ) from error
    if not isinstance(contents, dict) or not {"config", "state_dict"} <= contents.keys():
        raise CheckpointError(f"{path} is not a GHN checkpoint: must hold config and state_dict")
    state = contents["state_dict"]
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in state.items()
    ):
        raise CheckpointError(f"{path} is not a GHN checkpoint: state_dict must hold tensors by name")
    try:
        config = _our_config(contents["config"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CheckpointError(f"{path} has a configuration that cannot be read: {error!r}") from error
    weights: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if tensor.dim() == 4:  # 1×1 convolutions of the published decoders are linear layers here
            if tensor.shape[2:] != (1, 1):
                raise CheckpointError(f"{path}: {name} has shape {tuple(tensor.shape)}, must be a 1×1 convolution")
            tensor = tensor[:, :, 0, 0]
        if _our_name(name) in weights:
            raise CheckpointError(f"{path}: {name} is there twice, under another name too")
        weights[_our_name(name)] = tensor
    return config, weights


def write_ppuda_checkpoint(path: str | Path, config: GHNConfig, weights: Mapping[str, Tensor], epoch: int = 0) -> None:
    """Write a file `{config, state_dict, epoch}` as published with GHN-2, whole or not at all.

    Importing it gives the same weights and, but for the image size, the same configuration: the format only tells
    small images (32) from large ones (224), by the size of the largest kernel.

    Raises:
        CheckpointError: the format has no place for the hypernetwork's longest virtual edge.
    """
    if config.variant == "ghn2" and config.virtual_edges != PPUDA_VIRTUAL_EDGES:
        raise CheckpointError(
            f"virtual_edges = {config.virtual_edges}: must be {PPUDA_VIRTUAL_EDGES} for the published format"
        )
    normalises = config.variant != "ghn1"
    contents = {
        "config": {
            "max_shape": (2 * config.hidden, 2 * config.hidden, config.kernel, config.kernel),
            "num_classes": config.num_classes,
            "hid": config.hidden,
            "hypernet": "mlp" if config.variant == "mlp" else "gatedgnn",
            "decoder": "conv",
            "weight_norm": normalises,
            "ve": normalises,
            "layernorm": normalises,
        },
        "state_dict": {
            _ppuda_name(name): (tensor[:, :, None, None] if name in CONV_1X1_WEIGHTS else tensor).detach().cpu().clone()
            for name, tensor in weights.items()
        },
        "epoch": epoch,
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
        torch.save(contents, Path(scratch) / "whole")
        (Path(scratch) / "whole").replace(path)


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


PPUDA_PREFIXES = {
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


CONV_1X1_WEIGHTS = ("decoder.weights.mix.weight", "decoder.weights.channels.weight", "decoder.weights.classes.weight")
"""Our linear layers that the published code has as 1×1 convolutions."""


def _our_name(name: str) -> str:
    for theirs, ours in PPUDA_PREFIXES.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _ppuda_name(name: str) -> str:
    for theirs, ours in PPUDA_PREFIXES.items():  # the longer of two that fit comes first
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise KeyError(name)
