"""Checkpoints in the formats that were published, as files; reading one executes no code of it.

GHN-2, GHN-1 and the MLP: `ghn.models.ppuda_checkpoints`. GHN-3 and LoGAH: `ghn.models.ghn3_checkpoints`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ghn.models.checkpoints import CheckpointError
from ghn.models.config import GHNConfig
from ghn.models.ghn3_checkpoints import ghn3_checkpoint, is_ghn3, read_ghn3_checkpoint
from ghn.models.ppuda_checkpoints import ppuda_checkpoint, read_ppuda_checkpoint
from ghn.models.safe_pickle import load_pickled


def read_public_checkpoint(path: str | Path) -> tuple[GHNConfig, dict[str, Tensor]]:
    """Return the configuration and the weights, by their names here, of a file in a published format.

    Raises:
        CheckpointError: the file is missing, needs code to be loaded, or does not fit.
    """
    path = Path(path)
    contents = load_pickled(path)
    if is_ghn3(contents):
        return read_ghn3_checkpoint(contents, path)
    if not {"config", "state_dict"} <= contents.keys():
        raise CheckpointError(f"{path} is not a GHN checkpoint: must hold config and state_dict, or a GHN-3's weights")
    return read_ppuda_checkpoint(contents, path)


def write_public_checkpoint(path: str | Path, config: GHNConfig, weights: Mapping[str, Tensor], epoch: int = 0) -> None:
    """Write a file `{config, state_dict, epoch}` of `torch.save`, as a whole or not at all.

    Args:
        weights: by the names of `Hypernetwork.state_dict()`.

    Raises:
        CheckpointError: no published format can describe the hypernetwork.
    """
    contents = (ghn3_checkpoint if config.gnn == "transformer" else ppuda_checkpoint)(config, weights, epoch)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
        torch.save(contents, Path(scratch) / "whole")
        (Path(scratch) / "whole").replace(path)
