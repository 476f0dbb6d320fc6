"""How long a step's parts take, predicted from programs, so that workers can share a meta-batch evenly.

Networks of one meta-batch differ a hundredfold. Operations counted alone do not print_above_bar: on a CPU a dilated depthwise
convolution takes ten times as long for each of its few operations as a plain one, norms and activations have next to
none and take a third of the time, attention spends its time on softmax rather than on its products, and a small
network on starting operations. So each kind of work has a price of its own.

The prices are a non-negative least-squares fit to measured forward and backward passes of training architectures, at
32×32 and 14×14 pixels, in one thread of a CPU (`benchmarks/training_costs.py` fits them again and prints the errors).
On GPUs, where small networks spend their time on starting operations, they only roughly say who has more to do.
"""

from __future__ import annotations

from enum import StrEnum

from ghn.networks.operations import Operation, flops_of
from ghn.networks.program import Program


class Work(StrEnum):
    """Kinds of work that operations do, each in units that take about equally long."""

    DENSE = "dense convolution"
    POINTWISE = "pointwise"
    DEPTHWISE = "depthwise"
    DILATED_DEPTHWISE = "dilated depthwise"
    ATTENTION = "attention"


# Seconds, on the core where they were measured; only ratios matter.
SECONDS_PER_OPERATION = 9.0e-5
"""To start an operation, forward and backward."""

SECONDS_PER_ACTIVATION = 8.1e-10
"""Of an element of any intermediate result: norms, activations, sums, and the gradient's way back through them."""

SECONDS_PER_FLOP = {
    Work.DENSE: 1.0e-11,
    Work.POINTWISE: 2.3e-11,
    Work.DEPTHWISE: 2.7e-11,
    Work.DILATED_DEPTHWISE: 4.6e-10,
    Work.ATTENTION: 4.9e-9,
}
"""Of a floating-point operation of the forward pass; of attention, of a score of one token for another in one head."""

SECONDS_PER_PREDICTION, SECONDS_PER_NODE = 5.5e-2, 1.1e-4
"""Of a hypernetwork's forward and backward pass, and of each graph node in it (`benchmarks/hypernetwork.py`)."""


def hypernetwork_seconds(nodes: int) -> float:
    """Predicted seconds of a hypernetwork's forward and backward pass over graphs with so many nodes in all."""
    return SECONDS_PER_PREDICTION + SECONDS_PER_NODE * nodes


def training_seconds(program: Program, batch: int) -> float:
    """Predicted seconds of a target network's forward and backward pass for a batch of images."""
    work = sum(SECONDS_PER_FLOP[kind] * amount for kind, amount in map(work_of, program.operations))
    return SECONDS_PER_OPERATION * len(program.operations) + batch * (
        SECONDS_PER_ACTIVATION * program.activations + work
    )


def work_of(operation: Operation) -> tuple[Work, int]:
    """The kind of work that an operation does, and how much of it for one image; beside a product, none."""
    if operation.kind == "attention":
        tokens, _ = operation.shape
        (heads,) = operation.settings
        return Work.ATTENTION, heads * tokens**2
    return _product(operation), flops_of(operation)


def _product(operation: Operation) -> Work:
    """The kind of a convolution or of a linear layer."""
    if operation.kind != "conv":
        return Work.POINTWISE
    *_, dilation, groups = operation.settings
    if groups > 1:
        return Work.DEPTHWISE if dilation == 1 else Work.DILATED_DEPTHWISE
    *_, height, width = operation.parameters[0].shape
    return Work.POINTWISE if height == width == 1 else Work.DENSE
