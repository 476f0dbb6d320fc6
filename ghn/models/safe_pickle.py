"""State dicts from pickles of others, of which no code is executed.

Two kinds of files are read: those of `torch.save`, and those of `joblib.dump`, a plain pickle. An unpickler for the
second resolves only the four names that tensors need, each to a function of its own, so that a file cannot change those
of PyTorch. Any other name is an error that says which it was.
"""

from __future__ import annotations

import argparse
import collections
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from ghn.models.checkpoints import CheckpointError

ZIP_START = b"PK"
"""The bytes that files of `torch.save` begin with, but for those of before PyTorch 1.6."""


def _load_storage(contents: bytes) -> Any:
    """Return a storage of tensors, as `torch.storage._load_from_bytes` does, but of nothing else."""
    return torch.load(io.BytesIO(contents), map_location="cpu", weights_only=True)


ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch.storage", "_load_from_bytes"): _load_storage,
}
"""What a pickle of tensors names, by module and name."""


class _TensorUnpickler(pickle.Unpickler):
    """An unpickler that builds tensors, and numbers, texts and collections of them."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what a pickle names, if tensors need it."""
        if (module, name) not in ALLOWED:
            raise CheckpointError(f"it names {module}.{name}, and only what tensors need is read")
        function = ALLOWED[module, name]
        return lambda *arguments: function(*arguments)

    def persistent_load(self, pid: object) -> NoReturn:
        """Refuse what lies outside of the file."""
        raise CheckpointError(f"it names an object outside of the file: {pid!r:.80}")


def load_pickled(path: Path) -> dict[str, Any]:
    """Return the contents of a file: a dictionary.

    Raises:
        CheckpointError: the file is missing or damaged, names code, or holds something else.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} not found")
    with path.open("rb") as file:
        is_zip = file.read(len(ZIP_START)) == ZIP_START
    contents = _read(path, _read_saved if is_zip else _read_plain)
    if not isinstance(contents, dict):
        raise CheckpointError(f"{path} is not a GHN checkpoint: must hold a dictionary")
    return contents


def _read(path: Path, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(path)
    except CheckpointError as error:
        raise CheckpointError(f"{path} cannot be loaded without executing code: {error}") from error
    except Exception as error:  # a damaged pickle can raise any exception
        raise CheckpointError(
            f"{path} cannot be loaded without executing code, or is no file of torch.save or joblib, or damaged"
        ) from error


def _read_saved(path: Path) -> Any:
    with torch.serialization.safe_globals([argparse.Namespace]):  # trainers store their options beside the rest
        return torch.load(path, map_location="cpu", weights_only=True)


def _read_plain(path: Path) -> Any:
    """Return what a plain pickle holds. That of a `torch.save` of before PyTorch 1.6 begins with a number."""
    with path.open("rb") as file:
        contents = _TensorUnpickler(file).load()
    return _read_saved(path) if contents == torch.serialization.MAGIC_NUMBER else contents


def require_state(contents: object, path: Path) -> dict[str, Tensor]:
    """Return a state dict, tensors by name.

    Raises:
        CheckpointError: it is something else, or a tensor claims more numbers than the file has of it.
    """
    if not isinstance(contents, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in contents.items()
    ):
        raise CheckpointError(f"{path} is not a GHN checkpoint: state_dict must hold tensors by name")
    for name, tensor in contents.items():
        if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
            raise CheckpointError(f"{path}: {name} has shape {tuple(tensor.shape)}, but not as many numbers")
    return contents
