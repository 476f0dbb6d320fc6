"""Checkpoints: a folder with weights in safetensors and the configuration in JSON. Reading one executes no code."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ghn.models.config import GHNConfig

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or does not fit; the message names the file."""


def write_checkpoint(folder: str | Path, config: GHNConfig, weights: Mapping[str, Tensor]) -> None:
    """Write a checkpoint folder as a whole, in place of an earlier one, which stays if writing is interrupted.

    Args:
        weights: by name, on any device.

    Raises:
        CheckpointError: the folder exists and holds something else, which would be lost.
    """
    require_checkpoint_folder(folder)
    folder = Path(folder).resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        whole = Path(scratch) / "checkpoint"
        whole.mkdir()
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        save_file(tensors, whole / WEIGHTS_FILE)
        (whole / CONFIG_FILE).write_text(json.dumps(config.to_file(), indent=2) + "\n")
        shutil.copymode(whole / CONFIG_FILE, whole / WEIGHTS_FILE)  # safetensors makes files that only the owner reads
        _replace(folder, whole, Path(scratch) / "before")


def require_checkpoint_folder(folder: str | Path) -> None:
    """Raise an error where a checkpoint cannot be written, because there is something else.

    Raises:
        CheckpointError: the folder exists and holds something else, which would be lost.
    """
    folder = Path(folder).resolve()
    if folder.exists():
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else {"a file"}
        others = names - {WEIGHTS_FILE, CONFIG_FILE}
        if others:
            raise CheckpointError(f"{folder} is not a checkpoint (it holds {min(others)}): save to a folder of its own")


def _replace(folder: Path, new: Path, before: Path) -> None:
    """Rename `new` to `folder`; an earlier folder moves to `before`, and back again if renaming fails."""
    if not folder.exists():
        new.rename(folder)
        return
    folder.rename(before)
    try:
        new.rename(folder)
    except BaseException:
        before.rename(folder)
        raise


def read_checkpoint(folder: str | Path) -> tuple[GHNConfig, dict[str, Tensor]]:
    """Return the configuration and the weights, by name, of a checkpoint folder.

    Raises:
        CheckpointError: a file is missing or damaged, or the configuration is impossible.
    """
    folder = Path(folder)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder / name} not found: a checkpoint folder holds {CONFIG_FILE} and {WEIGHTS_FILE}"
            )
    try:
        config = GHNConfig(**json.loads((folder / CONFIG_FILE).read_text()))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / CONFIG_FILE} is not a GHN configuration: {error}") from error
    return config, read_weights(folder)


def read_weights(folder: str | Path) -> dict[str, Tensor]:
    """Return the weights of a checkpoint folder by name.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    path = Path(folder) / WEIGHTS_FILE
    try:
        return load_file(path)
    except (SafetensorError, FileNotFoundError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): copy or train it again") from error
