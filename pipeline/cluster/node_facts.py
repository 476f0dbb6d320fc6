"""What `ghn doctor` asks each node of a cluster. The functions run on the nodes, in tasks of Ray."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.cluster.ray_cluster import alive_nodes
from pipeline.errors import UserError
from pipeline.storage.files import read_bytes, remove, require_writable, write_bytes
from pipeline.storage.paths import doctor_folder, storage_root

PACKAGES = ("ray", "torch", "torchvision", "pyarrow", "s3fs", "mlflow", "numpy", "safetensors", "pydantic")
"""Packages whose versions must be the same everywhere: data of their own travels between nodes."""


@dataclass(frozen=True)
class StorageFacts:
    """How a node sees the storage.

    Attributes:
        node: its address.
        problem: what keeps it from writing; None: nothing.
        unseen: nodes whose files it cannot read.
    """

    node: str
    problem: str | None = None
    unseen: tuple[str, ...] = ()


@dataclass(frozen=True)
class NodeFacts:
    """What a node says of itself.

    Attributes:
        node: its address.
        python: the version of Python.
        packages: versions by name; None: not installed.
        seconds_ahead: of its clock, compared with the one that asks.
        free_disk, free_memory: in bytes, of the folder for temporary files and of the machine.
        gpus_of_ray: GPUs that Ray would give to tasks there.
        gpus: GPUs that PyTorch can use there.
        storage: how it sees the storage.
    """

    node: str
    python: str
    packages: Mapping[str, str | None]
    seconds_ahead: float
    free_disk: int
    free_memory: int
    gpus_of_ray: float
    gpus: int
    storage: StorageFacts


def facts_of_all_nodes(storage: str) -> list[NodeFacts]:
    """Return the facts of each node of the cluster that this process has joined, in the order of their addresses."""
    seen = _storage_by_node(storage)
    gpus = {node["NodeID"]: node["Resources"].get("GPU", 0) for node in alive_nodes()}
    own = _on_each(_own_facts, seen, lambda node_id: (gpus[node_id], seen[node_id]))
    found = [replace(facts, seconds_ahead=_seconds_ahead(node_id)) for node_id, facts in own.items()]
    return sorted(found, key=lambda facts: facts.node)


def storage_facts_of_all_nodes(storage: str) -> list[StorageFacts]:
    """Return how each node of the cluster sees the storage, in the order of their addresses."""
    return sorted(_storage_by_node(storage).values(), key=lambda facts: facts.node)


def _storage_by_node(storage: str) -> dict[str, StorageFacts]:
    """Let each node write a file into a folder of the storage, and then look for those of the others."""
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in alive_nodes()}
    root, folder = storage_root(storage), doctor_folder(storage, uuid4().hex)
    try:
        written = _on_each(_written, nodes, lambda node_id: (name_of(node_id, nodes), root, folder))
        there = [facts.node for facts in written.values() if facts.problem is None]
        unseen = _on_each(_unseen, nodes, lambda node_id: (folder, there))
    finally:
        remove(folder)
    return {node_id: replace(facts, unseen=tuple(unseen[node_id])) for node_id, facts in written.items()}


def name_of(node_id: str, nodes: Mapping[str, str]) -> str:
    """Return a node's address, with the beginning of its id where several nodes have the same address."""
    address = nodes[node_id]
    return address if list(nodes.values()).count(address) == 1 else f"{address} ({node_id[:6]})"


def _on_each(function: Any, nodes: Iterable[str], arguments_of: Any) -> dict[str, Any]:
    """Return what a function returns on each node, by id."""
    running = {node_id: _remote(function, node_id).remote(*arguments_of(node_id)) for node_id in nodes}
    return {node_id: ray.get(reference) for node_id, reference in running.items()}


def _remote(function: Any, node_id: str) -> Any:
    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(function).options(num_cpus=0, scheduling_strategy=there)


def _seconds_ahead(node_id: str) -> float:
    """Return how many seconds a node's clock is ahead, by the fastest of several answers."""
    answers = []
    for _ in range(3):
        asked = time.time()
        theirs = ray.get(_remote(_clock, node_id).remote())
        answered = time.time()
        answers.append((answered - asked, theirs - (asked + answered) / 2))
    return min(answers)[1]


def _own_facts(gpus_of_ray: float, storage: StorageFacts) -> NodeFacts:
    return NodeFacts(
        node=storage.node,
        python=platform.python_version(),
        packages={name: version_of(name) for name in PACKAGES},
        seconds_ahead=0.0,
        free_disk=shutil.disk_usage(tempfile.gettempdir()).free,
        free_memory=_free_memory(),
        gpus_of_ray=gpus_of_ray,
        gpus=_gpus() if gpus_of_ray else 0,
        storage=storage,
    )


def _clock() -> float:
    return time.time()


def _free_memory() -> int:
    """Return the bytes that programs can still have, the system's caches among them."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    (kibibytes,) = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return int(kibibytes) * 1024


def version_of(package: str) -> str | None:
    """Return the version of an installed package; None: it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _gpus() -> int:
    import torch

    os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # Ray hides the GPUs from a task that has asked for none
    return torch.cuda.device_count()


def _written(node: str, storage: str, folder: str) -> StorageFacts:
    """Write a file named like the node."""
    try:
        require_writable(storage)
        place = f"{folder}/{node}"
        write_bytes(place, place.encode())
    except UserError as error:
        return StorageFacts(node, problem=str(error).splitlines()[0])
    return StorageFacts(node)


def _unseen(folder: str, nodes: list[str]) -> list[str]:
    """Return the nodes whose files cannot be read here, or hold something else."""
    return [node for node in nodes if _content(f"{folder}/{node}") != f"{folder}/{node}".encode()]


def _content(place: str) -> bytes | None:
    try:
        return read_bytes(place)
    except (OSError, UserError):
        return None
