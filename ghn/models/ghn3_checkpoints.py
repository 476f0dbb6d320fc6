"""The contents of checkpoints that were published with GHN-3 and with LoGAH, which has another decoder.

They are a state dict, with its configuration beside it (`{config, state_dict, epoch}`) or, of GHN-3, alone; sizes are
read off the shapes of tensors. Source of the format: the checkpoints that accompany Knyazev, Hwang, Lacoste-Julien,
"Can We Scale Transformers to Predict Parameters of Diverse ImageNet Models?", ICML 2023, and the code of Zhou et al.,
"LoGAH", 2024.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ghn.models.checkpoints import CheckpointError
from ghn.models.config import DEFAULT_LOW_RANK_CHANNELS, VARIANTS, GHNConfig
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

LOW_RANK_PREFIXES = {"decoder.mlp.fc.": "decoder.weights.mlp.", "decoder.l2.": "decoder.weights.rows."}
"""The parts of a published low-rank decoder."""

LOW_RANK_COPY = "decoder.seq.1."
"""The prefix of a second copy of `decoder.l2.` in a published low-rank decoder."""

LOW_RANK_UNUSED = ("decoder.l1.", "decoder_1d.0.", "bias_class.1.")
"""Parts of a published low-rank hypernetwork that it does not use."""

DECODER_PREFIXES = {theirs: ours for theirs, ours in PPUDA_PREFIXES.items() if not theirs.startswith("gnn.")}

PREFIXES = FIRST_LAYER_PREFIXES | LOW_RANK_PREFIXES | DECODER_PREFIXES

PARTS = ("weight", "bias")


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
    own = contents.get("config") if "state_dict" in contents else None
    try:
        if "decoder.l2.weight" in state:
            state = _without_unused(state)
        weights: dict[str, Tensor] = {}
        for name, tensor in state.items():
            if _our_name(name) in weights:
                raise ValueError(f"{name} is there twice, under another name too")
            weights[_our_name(name)] = as_matrix(tensor, name, path)
        config = _config_of(weights, own if isinstance(own, Mapping) else {})
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise CheckpointError(f"{path} has weights that are not those of a GHN-3: {error!r}") from error
    return config, weights


def _without_unused(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a published low-rank hypernetwork that it uses.

    Raises:
        ValueError: the copy of a weight differs from it.
    """
    for part in PARTS:
        copy = state.get(f"{LOW_RANK_COPY}{part}")
        if copy is not None and not torch.equal(copy, state[f"decoder.l2.{part}"]):
            raise ValueError(f"{LOW_RANK_COPY}{part} differs from decoder.l2.{part}")
    return {name: tensor for name, tensor in state.items() if not name.startswith((LOW_RANK_COPY, *LOW_RANK_UNUSED))}


def ghn3_checkpoint(config: GHNConfig, weights: Mapping[str, Tensor], epoch: int) -> dict[str, Any]:
    """Return the contents `{config, state_dict, epoch}` of a file.

    Args:
        weights: by the names of `Hypernetwork.state_dict()`.

    Raises:
        CheckpointError: the format cannot describe its parts, its largest kernel or its longest virtual edge.
    """
    parts = config.composition
    published = VARIANTS["ghn3" if parts.decoder == "conv_central" else "logah"]
    free = ("layers", "heads", "channels", "rank", "extent", "small_start")
    if parts != published._replace(**{name: getattr(parts, name) for name in free}):
        raise CheckpointError(f"{parts}: must be that of ghn3 or logah for the published format")
    if config.virtual_edges != PPUDA_VIRTUAL_EDGES or config.kernel not in (SMALL_KERNEL, LARGE_KERNEL):
        raise CheckpointError(
            f"virtual_edges = {config.virtual_edges}, kernel = {config.kernel}: must be {PPUDA_VIRTUAL_EDGES}, and "
            f"{SMALL_KERNEL} or {LARGE_KERNEL}, for the published format"
        )
    state = {_public_name(name): tensor.detach().cpu().clone() for name, tensor in weights.items()}
    settings: dict[str, Any] = {}
    channels = config.most_channels
    if parts.decoder == "low_rank":
        extent = 2 * channels if config.extent is None else config.extent
        settings = {"lora": True, "lora_r": parts.rank, "max_ck_lora": extent, "use_1d_decoder": False}
        state |= _unused(parts.rank) | {f"{LOW_RANK_COPY}{part}": state[f"decoder.l2.{part}"] for part in PARTS}
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
            **settings,
        },
        "state_dict": state,
        "epoch": epoch,
    }


def _unused(rank: int) -> dict[str, Tensor]:
    """Return zeros for the weights of a published low-rank hypernetwork that it does not use."""
    sizes = {"decoder.l1.": rank, "decoder_1d.0.": 1, "bias_class.1.": 1}
    weights = {f"{name}weight": torch.zeros(size, size) for name, size in sizes.items()}
    return weights | {f"{name}bias": torch.zeros(size) for name, size in sizes.items()}


def _config_of(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> GHNConfig:
    """Return the configuration that the shapes of weights have, by their names here.

    Args:
        settings: those in the file, for what no shape says.

    Raises:
        KeyError: a weight is missing, or a setting.
        ValueError: the shapes are impossible.
    """
    for part in ("weight_norm", "layernorm", "ve"):
        if not settings.get(part, True):
            raise ValueError(f"{part} = {settings[part]}: must be true")
    hidden = weights["encoder.primitives.weight"].shape[1]
    kernel = SMALL_KERNEL if len(weights["encoder.spatial.weight"]) == SMALL_SPATIAL_ROWS else LARGE_KERNEL
    if "decoder.weights.rows.weight" in weights:
        if not {"num_classes", "max_shape"} <= settings.keys():
            raise ValueError(
                "the weights of a low-rank one do not say its number of classes: there must be a config too"
            )
        extent, rank = weights["decoder.weights.rows.weight"].shape
        channels, kernel = int(settings["max_shape"][0]), int(settings["max_shape"][-1])
        of_decoder: dict[str, Any] = {
            "variant": "logah",
            "num_classes": int(settings["num_classes"]),
            "channels": None if channels == DEFAULT_LOW_RANK_CHANNELS else channels,
            "rank": rank,
            "extent": None if extent == 2 * channels else extent,
        }
    else:
        channels = math.isqrt(len(weights["decoder.weights.channels.weight"]))
        of_decoder = {
            "variant": "ghn3",
            "num_classes": len(weights["decoder.weights.classes.weight"]),
            "channels": None if channels == 2 * hidden else channels,
        }
    return GHNConfig(
        image_size=32 if kernel == SMALL_KERNEL else 224,
        hidden=hidden,
        kernel=kernel,
        virtual_edges=PPUDA_VIRTUAL_EDGES,
        layers=len({name.split(".")[2] for name in weights if name.startswith("gnn.layers.")}),
        heads=len(weights["gnn.bias.2.weight"]),
        **of_decoder,
    )


def _our_name(name: str) -> str:
    return _renamed(name, PREFIXES, r"gnn\.(\d+)\.", "gnn.layers.", LAYER_PREFIXES) or name


def _public_name(name: str) -> str:
    theirs, of_layers = ({ours: theirs for theirs, ours in table.items()} for table in (PREFIXES, LAYER_PREFIXES))
    renamed = _renamed(name, theirs, r"gnn\.layers\.(\d+)\.", "gnn.", of_layers)
    if renamed is None:
        raise KeyError(name)
    return renamed


def _renamed(
    name: str, prefixes: Mapping[str, str], layer: str, new_layer: str, layer_prefixes: Mapping[str, str]
) -> str | None:
    """Return a name whose prefix is replaced; None if it has no known one.

    Args:
        prefixes: the new prefix of each that is not a layer's.
        layer: a pattern of how the names of a layer's parts begin, with the layer's number; `new_layer` and the number
            take its place.
        layer_prefixes: the new prefix of each part of a layer.
    """
    for old, new in prefixes.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    found = re.match(layer, name)
    if found is None:
        return None
    part = _renamed(name[found.end() :], layer_prefixes, layer, new_layer, {})
    return None if part is None else f"{new_layer}{found[1]}.{part}"
