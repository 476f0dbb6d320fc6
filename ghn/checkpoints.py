"""Checkpoints: a folder with weights in safetensors and the configuration in JSON; nothing executes code."""

from __future__ import annotations

import json
import shutil
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
        shutil.copymode(whole / CONFIG, whole / WEIGHTS)  # safetensors lets nobody else read
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
    return load_weights(GHN(config), folder)


def load_weights(ghn: GHN, folder: str | Path) -> GHN:
    """The hypernetwork with the weights of a checkpoint folder, in its own precision and in evaluation mode.

    Raises:
        CheckpointError: the file is damaged or does not fit.
    """
    path = Path(folder) / WEIGHTS
    try:
        weights = load_file(path)
    except (SafetensorError, FileNotFoundError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): copy or train it again") from error
    return with_weights(ghn, weights, path)


def with_weights(ghn: GHN, weights: dict[str, torch.Tensor], path: Path) -> GHN:
    """The hypernetwork with the weights of the file at `path`, in evaluation mode.

    Raises:
        CheckpointError: a weight is missing, too many or of another shape.
    """
    try:
        ghn.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} does not fit its configuration: {reason}") from error
    return ghn.eval()
