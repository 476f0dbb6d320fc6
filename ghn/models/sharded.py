"""Predicted parameters of a very large network, written to files as they are predicted.

The files are shards in safetensors with an index in JSON, as packages that load large networks read them. The network
itself may be on the meta device. Memory holds one shard, and one parameter with copies that its decoding makes.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ghn.models.hypernetwork import Hypernetwork
from ghn.models.predict_module import decoding_lines
from ghn.networks.graph import Graph

INDEX_FILE = "model.safetensors.index.json"

SHARD_BYTES = 400_000_000
"""Bytes up to which parameters are collected in a shard; a larger one has a shard of its own."""


@dataclass(frozen=True)
class WrittenPrediction:
    """What was predicted and written."""

    graph: Graph
    """Of the network; its `not_predicted` were not written."""
    files: tuple[Path, ...]
    """The shards."""
    repeated: tuple[str, ...]
    """Names of the weights whose channels repeat, because they have more than the hypernetwork decodes."""
    rank: int | None
    """The highest rank of predicted weights as matrices; None: the decoder does not bound it."""

    def __str__(self) -> str:
        parameters, missing = self.graph.parameters, self.graph.not_predicted
        elements = sum(parameter.size for parameter in parameters)
        nodes = len(self.graph.nodes)
        lines = [f"predicted {len(parameters)} parameters ({elements:,} elements) from a graph of {nodes} nodes"]
        lines += decoding_lines(self.repeated, self.rank)
        lines += [f"not predicted and not written, {reason}: {name}" for name, reason in missing.items()]
        return "\n".join(lines)


@torch.no_grad()
def write_predicted(
    ghn: Hypernetwork,
    graph: Graph,
    folder: str | Path,
    shard_bytes: int = SHARD_BYTES,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[int], object] = lambda elements: None,
) -> WrittenPrediction:
    """Predict all parameters of a graph and write them to a new folder, as a whole or not at all.

    Args:
        folder: is made; it must not exist, or be empty.
        shard_bytes: bytes of a shard.
        dtype: of the files.
        progress: is called with the number of elements after each parameter.

    Raises:
        FileExistsError: the folder holds something.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is there already and not empty")
    folder.parent.mkdir(parents=True, exist_ok=True)
    batch = ghn.batch([graph])
    sizes = {parameter.name: parameter.size for node in batch.nodes for parameter in node.parameters}
    shards = shards_of(sizes, shard_bytes // dtype.itemsize)
    files = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    shard_of = {name: number for number, names in enumerate(shards) for name in names}
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        whole = Path(scratch) / "whole"
        whole.mkdir()
        waiting: dict[str, Tensor] = {}
        for name, tensor in ghn.decoder.one_by_one(ghn.embed(batch), batch):
            waiting[name] = tensor.to("cpu", dtype).contiguous()
            progress(tensor.numel())
            number = shard_of[name]
            if len(waiting) == len(shards[number]):  # parameters come in the order of the shards
                save_file(waiting, whole / files[number], metadata={"format": "pt"})
                waiting = {}
        total = sum(sizes.values()) * dtype.itemsize
        index = {"metadata": {"total_size": total}, "weight_map": {name: files[at] for name, at in shard_of.items()}}
        (whole / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")
        for file in files:
            shutil.copymode(whole / INDEX_FILE, whole / file)  # safetensors makes files that only the owner reads
        if folder.exists():
            folder.rmdir()
        whole.replace(folder)
    paths = tuple(folder / file for file in files)
    return WrittenPrediction(graph, paths, ghn.repeated_weights(graph), ghn.most_rank)


def shards_of(sizes: Mapping[str, int], most: int) -> list[list[str]]:
    """Return the names of the parameters of each shard, in their order.

    Args:
        sizes: of the parameters, in elements.
        most: elements of a shard; a larger parameter has a shard of its own.
    """
    shards: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if size > room or not shards:
            shards.append([])
            room = most
        shards[-1].append(name)
        room -= size
    return shards
