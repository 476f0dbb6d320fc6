"""How long a step's parts take, predicted from programs, so that workers can share a meta-batch evenly.

Networks of one meta-batch differ a hundredfold. Operations counted alone do not tell: on a CPU a dilated depthwise
convolution takes fifty times as long for each of its few operations as a plain one, norms and activations have next to
none and take a third of the time, and a small network spends its time on starting operations. So each kind has a price
of its own.

The prices are a non-negative least-squares fit to measured forward and backward passes of training architectures, at
32×32 and 14×14 pixels, in one thread of a CPU (`benchmarks/training_costs.py` fits them again and prints the errors).
On GPUs, where small networks spend their time on starting operations, they only roughly say who has more to do.
"""

from __future__ import annotations

from enum import StrEnum

from ghn.program import Operation, Program, flops_of


class Kind(StrEnum):
    """Kinds of operations whose floating-point operations take about equally long."""

    DENSE = "dense"
    DEPTHWISE = "depthwise"
    DILATED_DEPTHWISE = "dilated depthwise"
    ATTENTION = "attention"


# Seconds, on the core where they were measured; only ratios matter.
OPERATION = 6.4e-5
"""To start an operation, forward and backward."""

ACTIVATION = 9.5e-10
"""Of an element of any intermediate result: norms, activations, sums, and the gradient's way back through them."""

FLOP = {Kind.DENSE: 9.8e-12, Kind.DEPTHWISE: 4.0e-11, Kind.DILATED_DEPTHWISE: 5.3e-10, Kind.ATTENTION: 2.1e-10}
"""Of a floating-point operation of the forward pass."""

PREDICTION, NODE = 5.5e-2, 1.1e-4
"""Of a hypernetwork's forward and backward pass, and of each graph node in it (`benchmarks/hypernetwork.py`)."""


def hypernetwork_seconds(nodes: int) -> float:
    """Predicted seconds of a hypernetwork's forward and backward pass over graphs with so many nodes in all."""
    return PREDICTION + NODE * nodes


def training_seconds(program: Program, batch: int) -> float:
    """Predicted seconds of a target network's forward and backward pass for a batch of images."""
    flops = sum(FLOP[kind_of(operation)] * flops_of(operation) for operation in program.operations)
    return OPERATION * len(program.operations) + batch * (ACTIVATION * program.activations + flops)


def kind_of(operation: Operation) -> Kind:
    """The kind of an operation; one without floating-point operations is of any."""
    if operation.kind == "attention":
        return Kind.ATTENTION
    if operation.kind == "conv":
        *_, dilation, groups = operation.settings
        if groups > 1:
            return Kind.DEPTHWISE if dilation == 1 else Kind.DILATED_DEPTHWISE
    return Kind.DENSE
