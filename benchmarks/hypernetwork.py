"""Forward and backward pass of GHN-2 or GHN-3 over a meta-batch of training graphs, with the decoder.

    python benchmarks/hypernetwork.py [--variant ghn2] [--meta-batch 8] [--threads 2] [--repeats 7]

Shows how the time grows with the number of nodes. For GHN-2, compares one level at a time with the loop over nodes of
the published description, which applies the MLPs at each edge, on the same graphs and weights. Variant `ghn3_t` is
GHN-3 in its smallest published size. The last line is JSON.
"""

from __future__ import annotations

import resource
import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Annotated, Any, Literal

import torch
import typer
from frame import RecordName, finish, introduce
from torch import Tensor

from ghn import GHN, GHNConfig
from ghn.deepnets1m.sampling import sample_architecture
from ghn.models.config import GHN3_SIZES
from ghn.models.gated_gnn import GatedGNN
from ghn.networks.graph_batch import GraphBatch

CONFIGS = {
    "ghn2": GHNConfig(num_classes=10, image_size=32),
    "ghn3_t": GHNConfig(num_classes=10, image_size=32, variant="ghn3", **GHN3_SIZES["ghn3_t"]),
}
"""The published settings for CIFAR-10."""


def meta_batch(ghn: GHN, count: int) -> GraphBatch:
    """Return the graphs of the first architectures of the training split, at the widths that training samples."""
    graphs = []
    for index in range(count):
        architecture = sample_architecture(0, "train", index)
        parameters = architecture.num_parameters(32, 10)
        samples = torch.rand(2, generator=torch.Generator().manual_seed(index)).numpy()
        widths, head_widths = (32, 48, 64, 80, 96, 112, 128), (64, 128, 192, 256, 320, 384, 448, 512)
        graphs.append(architecture.with_sampled_widths(parameters, widths, head_widths, samples).graph(32, 10))
    return ghn.batch(graphs)


def loss_of(predicted: list[dict[str, Tensor]]) -> Tensor:
    return sum(tensor.square().mean() for parameters in predicted for tensor in parameters.values())


def timed(ghn: GHN, batch: GraphBatch, repeats: int) -> tuple[float, float]:
    """Return the median seconds of the forward and of the backward pass, after a warm-up."""
    forward, backward = [], []
    for _ in range(repeats + 1):
        ghn.zero_grad()
        batch.cache.clear()  # what a pass needs of the graphs is computed again
        started = perf_counter()
        loss = loss_of(ghn(batch))
        between = perf_counter()
        loss.backward()
        forward.append(between - started)
        backward.append(perf_counter() - between)
    return statistics.median(forward[1:]), statistics.median(backward[1:])


def node_by_node(gnn: GatedGNN, h_NH: Tensor, batch: GraphBatch) -> Tensor:
    """Return the states by the published description, literally: each node in turn, the MLPs at each of its edges."""
    states = list(h_NH.unbind())
    for incoming, outgoing, order in (
        (batch.targets, batch.sources, range(batch.num_nodes)),
        (batch.sources, batch.targets, reversed(range(batch.num_nodes))),
    ):
        edges: list[list[tuple[int, int]]] = [[] for _ in states]
        for v, u, distance in zip(incoming.tolist(), outgoing.tolist(), batch.distances.tolist(), strict=True):
            edges[v].append((u, distance))
        for v in order:
            message = torch.zeros_like(states[v])
            if edges[v]:
                inputs = torch.stack([states[u] for u, _ in edges[v]])
                distance = torch.tensor([d for _, d in edges[v]])
                message = (gnn.mlp_virtual(inputs) / distance[:, None]).sum(0) + gnn.mlp(inputs[distance == 1]).sum(0)
            states[v] = gnn.gru(message[None], states[v][None])[0]
    return torch.stack(states)


def seconds(function: Callable[[], Tensor]) -> float:
    """Return the seconds of a forward and backward pass."""
    started = perf_counter()
    function().square().mean().backward()
    return perf_counter() - started


def main(
    meta_batch_size: Annotated[int, typer.Option("--meta-batch", help="Architectures.")] = 8,
    variant: Annotated[Literal["ghn2", "ghn3_t"], typer.Option(help="What is timed.")] = "ghn2",
    threads: Annotated[int, typer.Option(help="Of PyTorch.")] = 2,
    repeats: Annotated[int, typer.Option(help="Timed runs; the median counts.")] = 7,
    largest: Annotated[int, typer.Option(help="Nodes up to which the growth is measured.")] = 10_000,
    record: RecordName = None,
) -> None:
    """Time the hypernetwork."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    ghn = GHN(CONFIGS[variant])
    batch = meta_batch(ghn, meta_batch_size)
    forward, backward = timed(ghn, batch, repeats)
    introduce(variant, f"{threads} threads", "fp32", f"PyTorch {torch.__version__}")
    print(f"{meta_batch_size} graphs, {batch.num_nodes} nodes, {len(batch.sources)} edges, {levels(batch)} levels")
    print(f"forward {forward:.3f} s, backward {backward:.3f} s, together {forward + backward:.3f} s")
    print(f"at most {peak_gib():.1f} GiB of memory so far")
    result: dict[str, Any] = {
        "forward_seconds": round(forward, 4),
        "backward_seconds": round(backward, 4),
        "nodes": batch.num_nodes,
        "peak_gib": round(peak_gib(), 2),
    }
    if isinstance(ghn.gnn, GatedGNN):
        result["node_by_node_ratio"] = round(times_as_long_node_by_node(ghn, ghn.gnn, batch, repeats), 1)

    growth = []
    count = meta_batch_size
    while not growth or growth[-1]["nodes"] < largest:
        larger = meta_batch(ghn, count)
        total = sum(timed(ghn, larger, 3))
        growth.append({"nodes": larger.num_nodes, "seconds": round(total, 4)})
        print(f"{larger.num_nodes:6d} nodes {total:.3f} s, {1e3 * total / larger.num_nodes:.3f} ms per node")
        count *= 2
    finish(result | {"growth": growth}, record)


def times_as_long_node_by_node(ghn: GHN, gnn: GatedGNN, batch: GraphBatch, repeats: int) -> float:
    """Return how many times as long the loop over nodes takes for the same states, after comparing these."""
    h_NH = ghn.encoder(batch).detach()
    by_level = statistics.median(seconds(lambda: gnn(h_NH, batch)) for _ in range(repeats))
    by_node = seconds(lambda: node_by_node(gnn, h_NH, batch))
    torch.testing.assert_close(node_by_node(gnn, h_NH, batch), gnn(h_NH, batch), atol=1e-5, rtol=1e-4)
    print(
        f"GNN alone, forward and backward: by level {by_level:.3f} s, node by node {by_node:.2f} s, "
        f"{by_node / by_level:.0f} times as long for the same states"
    )
    return by_node / by_level


def peak_gib() -> float:
    """Return the most memory that this process has had, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def levels(batch: GraphBatch) -> int:
    return len(batch.level_bounds) - 1


if __name__ == "__main__":
    typer.run(main)
