"""The contents of checkpoints that were published with GHN-2: `{config, state_dict, epoch}`.

Source of the format: the checkpoints that accompany Knyazev et al., "Parameter Prediction for Unseen Deep
Architectures", NeurIPS 2021 (code: ppuda).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ghn.models.checkpoints import CheckpointError
from ghn.models.config import VARIANTS, Composition, GHNConfig
from ghn.models.safe_pickle import require_state

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


def read_ppuda_checkpoint(contents: Mapping[str, Any], path: Path) -> tuple[GHNConfig, dict[str, Tensor]]:
    """Return the configuration and the weights, by their names here, of the contents `{config, state_dict, epoch}`.

    Args:
        path: of the file, which errors name.

    Raises:
        CheckpointError: the contents do not fit.
    """
    try:
        config = _config_of(contents["config"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CheckpointError(f"{path} has a configuration that cannot be read: {error!r}") from error
    weights: dict[str, Tensor] = {}
    for name, tensor in require_state(contents["state_dict"], path).items():
        if _our_name(name) in weights:
            raise CheckpointError(f"{path}: {name} is there twice, under another name too")
        weights[_our_name(name)] = as_matrix(tensor, name, path)
    return config, weights


def as_matrix(tensor: Tensor, name: str, path: Path) -> Tensor:
    """Return a published weight as it is here, where 1×1 convolutions of the decoders are linear layers.

    Raises:
        CheckpointError: it is another convolution.
    """
    if tensor.dim() < 4:
        return tensor
    if tensor.shape[2:] != (1, 1):
        raise CheckpointError(f"{path}: {name} has shape {tuple(tensor.shape)}, must be a 1×1 convolution")
    return tensor[:, :, 0, 0]


def ppuda_checkpoint(config: GHNConfig, weights: Mapping[str, Tensor], epoch: int) -> dict[str, Any]:
    """Return the contents `{config, state_dict, epoch}` of a file.

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
    return {
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


def _config_of(config: dict[str, Any]) -> GHNConfig:
    """Return the configuration that the settings of ppuda describe.

    Raises:
        ValueError: the parts are those of no published variant.
    """
    with_graph = "gated_virtual" if config["ve"] else "gated"
    gnn = "mlp" if config["hypernet"] == "mlp" else with_graph
    parts = Composition(gnn, config["decoder"], config["weight_norm"], config["layernorm"])
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
