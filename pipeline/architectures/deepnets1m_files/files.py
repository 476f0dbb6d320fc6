"""The two files of a split of DeepNets-1M, read row by row because they do not fit in memory.

Dimensions: N nodes of a graph.

The HDF5 file holds `<split>/<i>/adj` (N, N), the lengths of shortest paths, and `<split>/<i>/nodes` (N, 3), the
numbers of each node's primitive, cell and operation. The JSON file holds, for each split, the records of the
architectures (`nets`) and the names that the numbers stand for (`meta`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from pipeline.errors import UserError

if TYPE_CHECKING:
    import h5py

PPUDA_SPLIT_NAMES = {"bn_free": "bnfree"}
"""Names in ppuda's files of splits that have another name here; files may use either."""


@dataclass(frozen=True)
class Contents:
    """The description of a split in the JSON file.

    Attributes:
        split: name of the split in the file.
        rows: number of its records.
        primitives: names of primitives by their numbers.
    """

    split: str
    rows: int
    primitives: dict[int, str]


@dataclass(frozen=True)
class PpudaGraph:
    """The graph of a row of the HDF5 file.

    Attributes:
        distances: lengths of shortest paths, integers (N, N), 0 where there is no path.
        nodes: numbers of each node's primitive, cell and operation, integers (N, 3).
    """

    distances: np.ndarray
    nodes: np.ndarray


class UnreadableGraph(ValueError):
    """A row of the HDF5 file is missing, damaged or no graph; the message says what is wrong."""


def require_file(place: Path) -> None:
    """Raise UserError if there is no such file."""
    if not place.is_file():
        raise UserError(f"{place} not found: must be a file of DeepNets-1M, deepnets1m_<name>.hdf5 or its _meta.json")


def content_digest_of_file(place: Path) -> str:
    """Return a digest of a file's content, hexadecimal; show a progress bar if that takes long."""
    digest = hashlib.blake2b(digest_size=16)
    with (
        place.open("rb") as file,
        tqdm(total=place.stat().st_size, desc="read", unit="B", unit_scale=True, delay=1) as bar,
    ):
        while block := file.read(1 << 22):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def read_contents(metadata: Path, split: str) -> Contents:
    """Return what the JSON file says of a split, after reading all of it.

    Raises:
        UserError: the file is not JSON, is incomplete, or has no such split.
    """
    there = list(_read(metadata, "", keys=True))
    name = next((name for name in (split, PPUDA_SPLIT_NAMES.get(split)) if name in there), None)
    if name is None:
        raise UserError(f"{metadata} has no split {split}: it has {', '.join(there) or 'none'}")
    meta = next(_read(metadata, f"{name}.meta"), None)
    try:
        primitives = {int(number): str(primitive) for number, primitive in (meta or {})["primitives_ext"].items()}
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise UserError(
            f"{metadata}: {name}.meta.primitives_ext must hold the names of primitives by their numbers"
        ) from error
    return Contents(name, sum(1 for _ in _read(metadata, f"{name}.nets.item")), primitives)


def read_records(metadata: Path, contents: Contents) -> Iterator[Any]:
    """Yield the records of a split, one after the other."""
    return _read(metadata, f"{contents.split}.nets.item")


def _read(metadata: Path, prefix: str, keys: bool = False) -> Iterator[Any]:
    """Yield the values at a prefix of the JSON file, or only the keys of the object at that prefix."""
    ijson = _installed("ijson")
    try:
        with metadata.open("rb") as file:
            if keys:
                yield from (key for place, event, key in ijson.parse(file) if (place, event) == (prefix, "map_key"))
            else:
                yield from ijson.items(file, prefix, use_float=True)
    except (ijson.JSONError, UnicodeDecodeError) as error:
        raise UserError(
            f"{metadata} is not the JSON file of DeepNets-1M, or not all of it\n"
            'must be {"<split>": {"nets": [records], "meta": {"primitives_ext": {"0": name, …}, …}}, …}'
        ) from error


def _installed(name: str) -> ModuleType:
    """Return a package of the extra `deepnets`; raise UserError if it is not installed."""
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(f'{name} is not installed: `pip install -e ".[pipeline,deepnets]"`') from error


@contextmanager
def open_graphs(hdf5: Path, contents: Contents) -> Iterator[h5py.Group]:
    """Open the group with the rows of a split, for `read_graph`.

    Raises:
        UserError: h5py is not installed, or the file is not HDF5, is incomplete, or has no such split.
    """
    h5py = _installed("h5py")
    try:
        file = h5py.File(hdf5, "r")
    except OSError as error:
        raise UserError(f"{hdf5} is no HDF5 file, or not all of one: {_one_line(error)}") from error
    with file:
        group = file.get(contents.split)
        if not isinstance(group, h5py.Group):
            raise UserError(f"{hdf5} has no split {contents.split}: it has {', '.join(file) or 'none'}")
        yield group


def read_graph(graphs: h5py.Group, index: int) -> PpudaGraph:
    """Return the graph of a row; raise UnreadableGraph if it is missing or damaged."""
    distances, nodes = (_dataset(graphs, f"{index}/{name}") for name in ("adj", "nodes"))
    N = len(nodes) if nodes.ndim else 0
    if nodes.shape != (N, 3) or N == 0:
        raise UnreadableGraph(f"nodes has the shape {nodes.shape}: must be (N, 3)")
    if distances.shape != (N, N):
        raise UnreadableGraph(f"adj has the shape {distances.shape}, but nodes has {N} rows")
    if distances.dtype.kind not in "iu" or nodes.dtype.kind not in "iu":
        raise UnreadableGraph(f"adj holds {distances.dtype} and nodes {nodes.dtype}: must be integers")
    return PpudaGraph(distances, nodes)


def _dataset(graphs: h5py.Group, name: str) -> np.ndarray:
    try:
        return np.asarray(graphs[name][()])
    except KeyError:
        raise UnreadableGraph(f"{graphs.name}/{name} is missing in the HDF5 file") from None
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise UnreadableGraph(f"{graphs.name}/{name} cannot be read: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
