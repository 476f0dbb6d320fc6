"""Checkpoints in the format that was published with GHN-2: `torch.save` of `{config, state_dict, epoch}`.

Source of the format: the checkpoints that accompany Knyazev et al., "Parameter Prediction for Unseen Deep
Architectures", NeurIPS 2021 (code: ppuda). Reading one executes no code of it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ghn.models.checkpoints import CheckpointError
from ghn.models.config import VARIANTS, Composition, GHNConfig

PPUDA_VARIANTS = ("ghn2", "ghn1", "mlp")
"""The variants that checkpoints were published of."""

PPUDA_VIRTUAL_EDGES = 50
"""The longest virtual edge of all published checkpoints, in edges; the files do not hold it."""


class PpudaGNN(NamedTuple):
    """The settings of ppuda that choose a graph neural network."""

    hypernet: str
    ve: bool
    """Whether the graphs have virtual edges."""


PPUDA_GNNS = {
    "gated_virtual": PpudaGNN("gatedgnn", True),
    "gated": PpudaGNN("gatedgnn", False),
    "mlp": PpudaGNN("mlp", True),
}
"""The settings of ppuda for each name in `ghn.models.config.GNNS`."""


def read_ppuda_checkpoint(path: str | Path) -> tuple[GHNConfig, dict[str, Tensor]]:
    """Return the configuration and the weights, by their names here, of a file `{config, state_dict, epoch}`.

    Raises:
        CheckpointError: the file is missing, needs code to be loaded, or does not fit.
    """
    path = Path(path)
    contents = _load(path)
    if _is_ghn3(contents["config"]):
        raise CheckpointError(f"{path} is a GHN-3, which is not supported: must be one of {', '.join(PPUDA_VARIANTS)}")
    try:
        config = _config_of(contents["config"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CheckpointError(f"{path} has a configuration that cannot be read: {error!r}") from error
    weights: dict[str, Tensor] = {}
    for name, tensor in contents["state_dict"].items():
        if tensor.dim() == 4:  # 1×1 convolutions of the published decoders are linear layers here
            if tensor.shape[2:] != (1, 1):
                raise CheckpointError(f"{path}: {name} has shape {tuple(tensor.shape)}, must be a 1×1 convolution")
            tensor = tensor[:, :, 0, 0]
        if _our_name(name) in weights:
            raise CheckpointError(f"{path}: {name} is there twice, under another name too")
        weights[_our_name(name)] = tensor
    return config, weights


def _is_ghn3(config: object) -> bool:
    """Return whether a configuration is that of a GHN-3, which has a transformer in place of the gated GNN."""
    return isinstance(config, Mapping) and ("heads" in config or config.get("is_ghn2") is False)


def _load(path: Path) -> dict[str, Any]:
    """Return the contents of a file: `config`, of any kind, and `state_dict`, tensors by name."""
    if not path.is_file():
        raise CheckpointError(f"{path} not found")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # trainers store their options beside the rest
            contents = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise any exception
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
    return contents


def write_ppuda_checkpoint(path: str | Path, config: GHNConfig, weights: Mapping[str, Tensor], epoch: int = 0) -> None:
    """Write a file `{config, state_dict, epoch}`, as a whole or not at all.

    Reading it gives the same weights and, except for the image size, the same configuration: the format only
    distinguishes small images (32) from large ones (224), by the size of the largest kernel.

    Args:
        weights: by the names of `Hypernetwork.state_dict()`.

    Raises:
        CheckpointError: the format cannot describe the hypernetwork's parts or its longest virtual edge.
    """
    parts = config.composition
    if parts not in [VARIANTS[variant] for variant in PPUDA_VARIANTS]:
        raise CheckpointError(f"{parts}: must be that of {', '.join(PPUDA_VARIANTS)} for the published format")
    if parts.gnn == "gated_virtual" and config.virtual_edges != PPUDA_VIRTUAL_EDGES:
        raise CheckpointError(
            f"virtual_edges = {config.virtual_edges}: must be {PPUDA_VIRTUAL_EDGES} for the published format"
        )
    contents = {
        "config": {
            "max_shape": (2 * config.hidden, 2 * config.hidden, config.kernel, config.kernel),
            "num_classes": config.num_classes,
            "hid": config.hidden,
            "hypernet": PPUDA_GNNS[parts.gnn].hypernet,
            "decoder": parts.decoder,
            "weight_norm": parts.normalise,
            "ve": PPUDA_GNNS[parts.gnn].ve,
            "layernorm": parts.layer_norm,
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


def _config_of(config: dict[str, Any]) -> GHNConfig:
    """Return the configuration that the settings of ppuda describe.

    Raises:
        ValueError: the parts are those of no published variant.
    """
    with_graph = "gated_virtual" if config["ve"] else "gated"
    gnn = "mlp" if config["hypernet"] == "mlp" else with_graph
    parts = Composition(gnn, config["decoder"], config["weight_norm"], config["layernorm"], dirac=False)
    variant = next((name for name in PPUDA_VARIANTS if VARIANTS[name] == parts), None)
    if variant is None:
        raise ValueError(f"{parts}: must be that of {', '.join(PPUDA_VARIANTS)}")
    kernel = config["max_shape"][-1]
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
"""Prefixes of names in the published state dict, with the prefix in `Hypernetwork.state_dict()` for each."""


CONV_1X1_WEIGHTS = ("decoder.weights.mix.weight", "decoder.weights.channels.weight", "decoder.weights.classes.weight")
"""Weights of linear layers here that are 1×1 convolutions in the published state dict."""


def _our_name(name: str) -> str:
    for theirs, ours in PPUDA_PREFIXES.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _ppuda_name(name: str) -> str:
    for theirs, ours in PPUDA_PREFIXES.items():  # where two prefixes fit, the longer one comes first
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise KeyError(name)
