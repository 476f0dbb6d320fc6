"""Predicted seconds of a step's parts, computed from programs, by which a meta-batch is divided evenly among workers.

Networks of one meta-batch differ a hundredfold. The number of floating-point operations alone predicts their times
badly. On a CPU, each operation of a dilated depthwise convolution takes four times as long as one of a plain depthwise
convolution. Norms and activations have hardly any operations and take a third of the time. Attention spends its time on
softmax rather than on its products, and a small network on starting operations. So each kind of work has its own
seconds per unit.

These are a non-negative least-squares fit to measured forward and backward passes of training architectures, at 32×32
and 14×14 pixels, in one thread of a CPU (`benchmarks/training_costs.py` fits them again and prints the errors). On GPUs
small networks spend their time on starting operations: there the predictions only roughly rank the networks.
"""

from __future__ import annotations

from enum import StrEnum

from ghn.networks.operations import Operation, flops_of
from ghn.networks.program import Program


class Work(StrEnum):
    """Kinds of work of operations; every unit of one kind takes about equally long.

    The unit is a floating-point operation of the forward pass; of attention, one score: of one token for another, in
    one head.
    """

    DENSE = "dense convolution"
    POINTWISE = "pointwise"
    DEPTHWISE = "depthwise"
    DILATED_DEPTHWISE = "dilated depthwise"
    ATTENTION = "attention"


# All seconds are those of the CPU core on which they were measured. Only their ratios matter.
SECONDS_PER_OPERATION = 1.3e-4
"""Seconds per operation of a program, to start it, forward and backward."""

SECONDS_PER_ACTIVATION = 7.9e-10
"""Seconds per element of any intermediate result: norms, activations and sums, forward and backward."""

SECONDS_PER_UNIT = {
    Work.DENSE: 1.1e-11,
    Work.POINTWISE: 3.1e-11,
    Work.DEPTHWISE: 6.5e-11,
    Work.DILATED_DEPTHWISE: 2.6e-10,
    Work.ATTENTION: 5.0e-9,
}
"""Seconds per unit of each kind of work, forward and backward."""

SECONDS_PER_PREDICTION = 5.5e-2
"""Seconds per forward and backward pass of a hypernetwork (`benchmarks/hypernetwork.py`)."""

SECONDS_PER_NODE = 1.1e-4
"""Seconds per graph node of such a pass."""


def hypernetwork_seconds(nodes: int) -> float:
    """Return the predicted seconds of a hypernetwork's forward and backward pass.

    Args:
        nodes: number of nodes of all graphs together.
    """
    return SECONDS_PER_PREDICTION + SECONDS_PER_NODE * nodes


def training_seconds(program: Program, batch: int) -> float:
    """Return the predicted seconds of a target network's forward and backward pass.

    Args:
        batch: number of images.
    """
    work = sum(SECONDS_PER_UNIT[kind] * amount for kind, amount in map(work_of, program.operations))
    return SECONDS_PER_OPERATION * len(program.operations) + batch * (
        SECONDS_PER_ACTIVATION * program.activations + work
    )


def work_of(operation: Operation) -> tuple[Work, int]:
    """Return the kind of work of an operation, and its units for one image.

    Operations other than attention, convolutions and linear layers have no units: their time is that of activations.
    """
    if operation.kind in ("attention", "causal_attention"):
        tokens, _ = operation.shape
        heads, *_ = operation.settings
        return Work.ATTENTION, heads * tokens**2
    return _product_kind(operation), flops_of(operation)


def _product_kind(operation: Operation) -> Work:
    """Return the kind of a convolution or of a linear layer."""
    if operation.kind != "conv":
        return Work.POINTWISE
    *_, dilation, groups = operation.settings
    if groups > 1:
        return Work.DEPTHWISE if dilation == 1 else Work.DILATED_DEPTHWISE
    *_, height, width = operation.parameters[0].shape
    return Work.POINTWISE if height == width == 1 else Work.DENSE
