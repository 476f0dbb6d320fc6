"""One training step at the published settings for CIFAR-10, and the plain loop that it replaces.

    python benchmarks/train_step.py [--meta-batch 8] [--batch 64] [--image-size 32] [--dtype fp32] [--threads 2]

A step is graphs, hypernetwork forward, each target network forward and backward, hypernetwork backward and clipping.
Its architectures, compiled at the widths that training samples, and its images are at hand. The plain loop does it as
one would write it first: for each architecture it predicts the parameters node by node, builds our `nn.Module` and runs
it in fp32; then it calls backward once. Both compute the same steps, and compare one gradient. Whatever the meta-batch,
the same 64 architectures are timed (more, if it is larger), so that figures of different meta-batches compare.

The last line is JSON: `step_seconds`, `hypernetwork_share` (of a step: graphs, hypernetwork forward and backward),
`plain_loop_seconds`, `peak_rss_bytes` (of this process, before the plain loop).
"""

from __future__ import annotations

import resource
from collections.abc import Sequence
from time import perf_counter
from typing import Annotated, Literal

import numpy as np
import torch
import typer
from frame import RecordName, finish, introduce
from hypernetwork import node_by_node
from published_step import CLASSES, hypernetwork_seconds, meta_batches, train_step
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from ghn import GHN, GHNConfig
from ghn.networks.graph import Graph, Node
from ghn.networks.graph_batch import GraphBatch
from ghn.networks.module import ProgramModule
from ghn.training.meta_batch import SampledArchitecture
from ghn.training.step import StepSettings


def plain_step(ghn: GHN, sampled: Sequence[SampledArchitecture], images: Tensor, labels: Tensor) -> float:
    """Return the seconds of the plain loop for the same step."""
    started = perf_counter()
    ghn.zero_grad()
    losses = []
    for item in sampled:
        parameters = predict_node_by_node(ghn, item.program.graph)
        module = ProgramModule(item.program).eval()  # no dropout
        losses.append(F.cross_entropy(functional_call(module, parameters, images), labels))
    torch.stack(losses).sum().backward()
    torch.nn.utils.clip_grad_norm_(ghn.parameters(), 5.0)
    return perf_counter() - started


def predict_node_by_node(ghn: GHN, graph: Graph) -> dict[str, Tensor]:
    batch = ghn.batch([graph])
    h_NH = ghn.norm(node_by_node(ghn.gnn, ghn.encoder(batch), batch))
    predicted: dict[str, Tensor] = {}
    for node, h_H in zip(batch.nodes, h_NH, strict=True):
        if node.parameters:
            predicted |= ghn.decoder(h_H[None], alone(node))[0]
    return predicted


def alone(node: Node) -> GraphBatch:
    """Return a batch of one node."""
    none = np.empty(0, dtype=int)
    return GraphBatch((node,), 1, np.zeros(1, dtype=int), np.array([0, 1]), none, none, none)


def require_equal_gradients(ghn: GHN, sampled: Sequence[SampledArchitecture], images: Tensor, labels: Tensor) -> None:
    """Require the same gradients of both loops, up to rounding; networks must have no dropout."""
    gradients = []
    for step in (train_step, plain_step):
        extra = (0, StepSettings(seed=0)) if step is train_step else ()
        step(ghn, [item for item in sampled if item.architecture.fc_layers == 1], images, labels, *extra)
        gradients.append(torch.cat([weight.grad.flatten() for weight in ghn.parameters()]))
    difference = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
    assert difference < 1e-2, difference
    print(f"gradient of one step, ours and the plain loop's: relative difference {difference:.1e}")


def main(
    meta_batch: Annotated[int, typer.Option(min=1, help="Architectures a step.")] = 8,
    batch: Annotated[int, typer.Option(min=2, help="Images.")] = 64,
    image_size: Annotated[int, typer.Option(min=8, help="In pixels.")] = 32,
    dtype: Annotated[Literal["fp32", "bf16"], typer.Option(help="Of target networks.")] = "fp32",
    threads: Annotated[int, typer.Option(help="Of PyTorch.")] = 2,
    architectures: Annotated[int, typer.Option(min=1, help="That are timed, in meta-batches.")] = 64,
    plain: Annotated[bool, typer.Option(help="Time the plain loop too.")] = True,
    record: RecordName = None,
) -> None:
    """Time a training step."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    ghn = GHN(GHNConfig(num_classes=CLASSES, image_size=image_size))
    images, labels = torch.randn(batch, 3, image_size, image_size), torch.arange(batch) % CLASSES
    images = images.contiguous(memory_format=torch.channels_last)
    settings = StepSettings(seed=0, precision=torch.bfloat16 if dtype == "bf16" else torch.float32)
    steps = list(meta_batches(meta_batch, architectures, image_size))
    introduce(f"{threads} threads", dtype, f"PyTorch {torch.__version__}")

    train_step(ghn, steps[0][:2], images, labels, 0, settings)
    taken = [train_step(ghn, sampled, images, labels, step, settings) for step, sampled in enumerate(steps)]
    step_seconds = sum(seconds for seconds, _ in taken) / len(taken)
    share = sum(hypernetwork_seconds(phases) for _, phases in taken) / sum(seconds for seconds, _ in taken)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{meta_batch} architectures, {batch} images of {image_size}x{image_size}: {step_seconds:.2f} s per step")
    print(f"hypernetwork {share:.1%} of it; at most {peak / 2**20:.0f} MiB")
    result = {"step_seconds": round(step_seconds, 4), "hypernetwork_share": round(share, 4), "peak_rss_bytes": peak}
    if plain:
        require_equal_gradients(ghn, steps[0], images, labels)
        plain_seconds = sum(plain_step(ghn, sampled, images, labels) for sampled in steps) / len(steps)
        result["plain_loop_seconds"] = round(plain_seconds, 4)
        print(f"plain loop {plain_seconds:.2f} s: a step takes {step_seconds / plain_seconds:.2f} of that")
    finish(result, record)


if __name__ == "__main__":
    typer.run(main)
