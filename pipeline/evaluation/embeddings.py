"""Embeddings of networks by a hypernetwork, and files of those of stored architectures.

The embedding of a network is the mean of its nodes' states (`Hypernetwork.mean_embeddings`). Those of a stored split
are computed once, in tasks on the cluster: a Parquet file with one column, `embedding`, for some hundred rows of the
split. Each file has a record with its checksum (`pipeline.storage.records`), and their folder is named after all that
they depend on: the checkpoint, the stored architectures, and the sizes of the networks.

Dimensions: A networks, H hidden.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

from ghn.models.hypernetwork import Hypernetwork
from ghn.networks.network import Network
from pipeline.architectures.shards import shard_name
from pipeline.architectures.store import ArchitectureStore, Manifest
from pipeline.cluster.ray_cluster import run_tasks
from pipeline.errors import UserError
from pipeline.params import settings_hash
from pipeline.storage.paths import embeddings_folder
from pipeline.storage.records import Origin, read_output, write_output

EMBEDDINGS_FORMAT = 1  # part of the settings hash: raise it whenever the same inputs would give other embeddings

ROWS_IN_FILE = 500
"""Architectures a file and a task; they take some seconds."""

NETWORKS_AT_ONCE = 25
"""Networks that a hypernetwork reads together: more are not faster."""


@dataclass(frozen=True)
class StoredArchitectures:
    """The first `count` architectures of a split, at the width and for the images with which they are compared.

    `storage` is the place of the storage itself, the same in all processes.
    """

    storage: str
    manifest: Manifest
    split: str
    count: int
    width: int
    head_width: int
    image_size: int
    classes: int

    @property
    def origin(self) -> Origin:
        """What the architectures depend on, but for their number."""
        fields = asdict(self) | {"architectures": ArchitectureStore(self.storage, self.manifest).digest}
        return {name: value for name, value in fields.items() if name not in ("storage", "manifest", "count")}

    def ranges(self, rows: int) -> list[tuple[int, int]]:
        """Return the first positions and those after the last of parts of so many rows."""
        return [(first, min(first + rows, self.count)) for first in range(0, self.count, rows)]

    def read(self, first: int, last: int) -> list[Network]:
        """Return the architectures from position `first` up to and without `last`."""
        stored = ArchitectureStore(self.storage, self.manifest)[self.split].read_range(first, last)
        return [architecture.with_width(self.width, self.head_width) for architecture in stored]


@torch.no_grad()
def embed(networks: Sequence[Network], ghn: Hypernetwork, image_size: int, classes: int) -> np.ndarray:
    """Return the embeddings of networks, float32 (A, H)."""
    groups = [networks[start : start + NETWORKS_AT_ONCE] for start in range(0, len(networks), NETWORKS_AT_ONCE)]
    embeddings = [ghn.mean_embeddings(group, image_size, classes).float().cpu().numpy() for group in groups]
    return np.concatenate(embeddings) if embeddings else np.empty((0, ghn.config.hidden), np.float32)


def stored_embeddings(architectures: StoredArchitectures, ghn: Hypernetwork, checkpoint: str) -> np.ndarray:
    """Return the embeddings of stored architectures, float32 (A, H), after computing those that are missing.

    This process must be connected to a cluster.

    Args:
        checkpoint: the digest of the hypernetwork's files.
    """
    made_from = architectures.origin | {"checkpoint": checkpoint, "format": EMBEDDINGS_FORMAT}
    folder = embeddings_folder(architectures.storage, settings_hash(made_from))
    places = {rows: f"{folder}/{shard_name(*rows)}" for rows in architectures.ranges(ROWS_IN_FILE)}
    found = {rows: read_embeddings(place, made_from) for rows, place in places.items()}
    missing = [rows for rows, embeddings in found.items() if embeddings is None]
    shared = ray.put(ghn.cpu())
    tasks = [(architectures, *rows, shared, places[rows], made_from) for rows in missing]
    amounts = [last - first for first, last in missing]
    for position, _ in run_tasks(embed_rows, tasks, description="embed", unit="architecture", amounts=amounts):
        rows = missing[position]
        found[rows] = read_embeddings(places[rows], made_from)
    return np.concatenate([_required(embeddings, places[rows]) for rows, embeddings in found.items()])


def _required(embeddings: np.ndarray | None, place: str) -> np.ndarray:
    if embeddings is None:
        raise UserError(f"{place} cannot be read here, where a task of this stage has written it: is it on all nodes?")
    return embeddings


def embed_rows(
    architectures: StoredArchitectures, first: int, last: int, ghn: Hypernetwork, place: str, made_from: Origin
) -> None:
    """Write the embeddings of some rows to a file, and its record."""
    networks = architectures.read(first, last)
    write_embeddings(place, embed(networks, ghn, architectures.image_size, architectures.classes), made_from)


def write_embeddings(place: str, embeddings_AH: np.ndarray, made_from: Origin) -> None:
    """Write embeddings as a Parquet file with one column of lists of H numbers, and its record."""
    values = pa.array(embeddings_AH.astype(np.float32).ravel())
    column = pa.FixedSizeListArray.from_arrays(values, embeddings_AH.shape[1])
    buffer = io.BytesIO()
    pq.write_table(pa.table({"embedding": column}), buffer, compression="zstd")
    write_output(place, buffer.getvalue(), made_from)


def read_embeddings(place: str, made_from: Origin) -> np.ndarray | None:
    """Return the embeddings of a file, float32 (A, H); None if it is missing, damaged or made from something else."""
    found = read_output(place, made_from)
    if found is None:
        return None
    column = pq.read_table(pa.BufferReader(found[0]))["embedding"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)
