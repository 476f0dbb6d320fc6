"""The functional view of a program: its forward pass with *given* parameters.

Dimensions: B images, C channels, Y×X pixels, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ghn.networks.operations import Operation
from ghn.networks.program import Program

Kernel = Callable[[Operation, Sequence[Tensor], Sequence[Tensor]], Tensor]


def run_program(
    program: Program,
    parameters: Mapping[str, Tensor],
    images: Tensor,
    dropout: torch.Generator | None = None,
) -> Tensor:
    """Logits (B, classes) of `images` (B, 3, S, S).

    Args:
        parameters: a tensor for each name of `program.parameters()`; gradients flow into them.
        dropout: the generator of the dropout masks; None switches dropout off.

    Raises:
        KeyError: a parameter is missing.
    """

    def kernel(operation: Operation, inputs: Sequence[Tensor]) -> Tensor:
        return run_operation(operation, inputs, [parameters[p.name] for p in operation.parameters])

    return evaluate(program, images, kernel, dropout)


def evaluate(
    program: Program,
    images: Tensor,
    kernel: Callable[[Operation, Sequence[Tensor]], Tensor],
    dropout: torch.Generator | None = None,
) -> Tensor:
    """Applies `kernel` to every operation in order and frees each result after its last use."""
    results: list[Tensor | None] = []
    for operation, freed in zip(program.operations, program.freed_after, strict=True):
        if operation.kind == "image":
            results.append(images)
        elif operation.kind == "zeros":
            results.append(images.new_zeros(len(images), *operation.shape))
        elif operation.kind == "dropout":
            x = results[operation.inputs[0]]
            results.append(x if dropout is None else _dropout(x, dropout))
        else:
            results.append(kernel(operation, [results[source] for source in operation.inputs]))
        for source in freed:
            results[source] = None
    return results[-1]


def run_operation(operation: Operation, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """The result of one operation, for a batch of images."""
    return KERNELS[operation.kind](operation, inputs, parameters)


def _dropout(x: Tensor, generator: torch.Generator) -> Tensor:
    """Drops half of the elements; the mask is drawn on the CPU so that it does not depend on the device."""
    keep = torch.rand(x.shape, generator=generator) < 0.5
    return x * (2.0 * keep.to(x.device, x.dtype))


def _conv(operation: Operation, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    sh, sw, ph, pw, dilation, groups = operation.settings
    return F.conv2d(inputs[0], parameters[0], None, (sh, sw), (ph, pw), dilation, groups)


def _batch_norm(operation: Operation, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """Always with the statistics of the batch, in training and in evaluation alike."""
    return F.batch_norm(inputs[0], None, None, *parameters, training=True)


def _avg_pool(operation: Operation, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    return F.avg_pool2d(inputs[0], *operation.settings, count_include_pad=False)


def _shift(operation: Operation, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """Without the first row and column, padded with zeros at the far edge to the same size."""
    return F.pad(inputs[0][:, :, 1:, 1:], (0, 1, 0, 1))


def _subsample(operation: Operation, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    (stride,) = operation.settings
    return inputs[0][:, :, ::stride, ::stride]


def _attention(operation: Operation, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """softmax(qk/√d)v for each head; the input holds q, k and v side by side."""
    (heads,) = operation.settings
    qkv_BTD = inputs[0]
    B, T, D = qkv_BTD.shape
    q, k, v = qkv_BTD.view(B, T, 3, heads, D // (3 * heads)).permute(2, 0, 3, 1, 4)
    if qkv_BTD.dtype == torch.bfloat16 and qkv_BTD.device.type == "cpu":
        # PyTorch's fused kernel takes ten times as long for its backward pass here (2.14, 121 tokens).
        x = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1).to(v.dtype) @ v
    else:
        x = F.scaled_dot_product_attention(q, k, v)
    return x.transpose(1, 2).reshape(B, T, D // 3)


def _untokens(operation: Operation, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    return inputs[0].transpose(1, 2).reshape(-1, *operation.shape)


KERNELS: dict[str, Kernel] = {
    "conv": _conv,
    "batch_norm": _batch_norm,
    "layer_norm": lambda o, x, p: F.layer_norm(x[0], p[0].shape, *p),
    "linear": lambda o, x, p: F.linear(x[0], *p),
    "relu": lambda o, x, p: F.relu(x[0]),
    "gelu": lambda o, x, p: F.gelu(x[0]),
    "hardswish": lambda o, x, p: F.hardswish(x[0]),
    "max_pool": lambda o, x, p: F.max_pool2d(x[0], *o.settings),
    "avg_pool": _avg_pool,
    "global_pool": lambda o, x, p: x[0].mean((2, 3)),
    "squeeze": lambda o, x, p: x[0].mean((2, 3)),
    "flatten": lambda o, x, p: x[0].flatten(1),
    "shift": _shift,
    "subsample": _subsample,
    "add": lambda o, x, p: sum(x[1:], start=x[0]),
    "concat": lambda o, x, p: torch.cat(list(x), 1),
    "position_encoding": lambda o, x, p: p[0],
    "tokens": lambda o, x, p: x[0].flatten(2).transpose(1, 2),
    "untokens": _untokens,
    "attention": _attention,
    "scale": lambda o, x, p: x[0] * x[1][:, :, None, None],
}
