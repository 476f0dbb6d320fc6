"""The contents of checkpoints that were published with GHN-3.

They are a state dict, with its configuration beside it (`{config, state_dict, epoch}`) or alone; sizes are read off the
shapes of tensors. Source of the format: the checkpoints that accompany Knyazev, Hwang, Lacoste-Julien, "Can We Scale
Transformers to Predict Parameters of Diverse ImageNet Models?", ICML 2023.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ghn.models.checkpoints import CheckpointError
from ghn.models.config import VARIANTS, GHNConfig
from ghn.models.ppuda_checkpoints import PPUDA_PREFIXES, PPUDA_VIRTUAL_EDGES, as_matrix
from ghn.models.safe_pickle import require_state

SMALL_KERNEL, LARGE_KERNEL = 11, 16
"""The largest predicted kernels of published checkpoints."""

SMALL_SPATIAL_ROWS = 9
"""Rows of the table of kernel sizes of those with the small kernel."""

FIRST_LAYER_PREFIXES = {
    "gnn.0.centrality_embed_in.": "gnn.in_degrees.",
    "gnn.0.centrality_embed_out.": "gnn.out_degrees.",
    "gnn.0.input_dist_embed.": "gnn.depths.",
    "gnn.0.attn.edge_embed.embed.": "gnn.distances.",
    "gnn.0.attn.proj_e.": "gnn.bias.",
}
"""What the published first layer holds for all layers, with the prefix here for each."""

LAYER_PREFIXES = {
    "ln1.": "attention_norm.",
    "attn.to_qkv.": "queries_keys_values.",
    "attn.to_out.0.": "out.",
    "ln2.": "mlp_norm.",
    "ff.net.0.": "mlp.0.",
    "ff.net.3.": "mlp.2.",
}
"""The parts of a published layer `gnn.i.`, with those of `gnn.layers.i.` here."""

DECODER_PREFIXES = {theirs: ours for theirs, ours in PPUDA_PREFIXES.items() if not theirs.startswith("gnn.")}


def is_ghn3(contents: Mapping[str, Any]) -> bool:
    """Return whether the contents of a file are those of a GHN-3: its first layer says so."""
    state = contents.get("state_dict", contents)
    return isinstance(state, dict) and any(str(name).startswith("gnn.0.attn.") for name in state)


def read_ghn3_checkpoint(contents: Mapping[str, Any], path: Path) -> tuple[GHNConfig, dict[str, Tensor]]:
    """Return the configuration and the weights, by their names here, of the contents of a file.

    Args:
        path: of the file, which errors name.

    Raises:
        CheckpointError: the contents do not fit.
    """
    state = require_state(contents.get("state_dict", contents), path)
    try:
        weights = {_our_name(name): as_matrix(tensor, name, path) for name, tensor in state.items()}
        config = _config_of(weights)
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(f"{path} has weights that are not those of a GHN-3: {error!r}") from error
    return config, weights


def ghn3_checkpoint(config: GHNConfig, weights: Mapping[str, Tensor], epoch: int) -> dict[str, Any]:
    """Return the contents `{config, state_dict, epoch}` of a file.

    Args:
        weights: by the names of `Hypernetwork.state_dict()`.

    Raises:
        CheckpointError: the format cannot describe its parts, its largest kernel or its longest virtual edge.
    """
    parts, published = config.composition, VARIANTS["ghn3"]
    sizes = {name: getattr(parts, name) for name in ("layers", "heads", "channels")}
    if parts != published._replace(**sizes, small_start=parts.small_start):
        raise CheckpointError(f"{parts}: must be that of ghn3 for the published format")
    if config.virtual_edges != PPUDA_VIRTUAL_EDGES or config.kernel not in (SMALL_KERNEL, LARGE_KERNEL):
        raise CheckpointError(
            f"virtual_edges = {config.virtual_edges}, kernel = {config.kernel}: must be {PPUDA_VIRTUAL_EDGES}, and "
            f"{SMALL_KERNEL} or {LARGE_KERNEL}, for the published format"
        )
    channels = 2 * config.hidden if config.channels is None else config.channels
    return {
        "config": {
            "max_shape": (channels, channels, config.kernel, config.kernel),
            "num_classes": config.num_classes,
            "hid": config.hidden,
            "heads": parts.heads,
            "layers": parts.layers,
            "weight_norm": parts.normalise,
            "ve": True,
            "layernorm": parts.layer_norm,
        },
        "state_dict": {_public_name(name): tensor.detach().cpu().clone() for name, tensor in weights.items()},
        "epoch": epoch,
    }


def _config_of(weights: Mapping[str, Tensor]) -> GHNConfig:
    """Return the configuration that the shapes of weights have, by their names here.

    Raises:
        KeyError: a weight is missing.
        ValueError: the shapes are impossible.
    """
    hidden = weights["encoder.primitives.weight"].shape[1]
    channels = math.isqrt(len(weights["decoder.weights.channels.weight"]))
    kernel = SMALL_KERNEL if len(weights["encoder.spatial.weight"]) == SMALL_SPATIAL_ROWS else LARGE_KERNEL
    return GHNConfig(
        num_classes=len(weights["decoder.weights.classes.weight"]),
        image_size=32 if kernel == SMALL_KERNEL else 224,
        variant="ghn3",
        hidden=hidden,
        kernel=kernel,
        virtual_edges=PPUDA_VIRTUAL_EDGES,
        layers=len({name.split(".")[2] for name in weights if name.startswith("gnn.layers.")}),
        heads=len(weights["gnn.bias.2.weight"]),
        channels=None if channels == 2 * hidden else channels,
    )


def _our_name(name: str) -> str:
    for theirs, ours in (FIRST_LAYER_PREFIXES | DECODER_PREFIXES).items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    layer = re.fullmatch(r"gnn\.(\d+)\.(.*)", name)
    if layer is not None:
        for theirs, ours in LAYER_PREFIXES.items():
            if layer[2].startswith(theirs):
                return f"gnn.layers.{layer[1]}.{ours}{layer[2].removeprefix(theirs)}"
    return name


def _public_name(name: str) -> str:
    for theirs, ours in (FIRST_LAYER_PREFIXES | DECODER_PREFIXES).items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    layer = re.fullmatch(r"gnn\.layers\.(\d+)\.(.*)", name)
    if layer is not None:
        for theirs, ours in LAYER_PREFIXES.items():
            if layer[2].startswith(ours):
                return f"gnn.{layer[1]}.{theirs}{layer[2].removeprefix(ours)}"
    raise KeyError(name)
