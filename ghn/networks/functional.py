"""The functional view of a program: its forward pass with given parameters.

Dimensions: B images or texts, C channels, Y×X pixels, S×S pixels of the input, T tokens, D channels of tokens, A heads,
d channels of a head, K classes or, of texts, tokens of the vocabulary; a name without a suffix has the shape of an
operation's result, with B in front.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ghn.networks.depthwise import depthwise_conv, is_covered
from ghn.networks.devices import upload
from ghn.networks.operations import Operation
from ghn.networks.program import Program

ROTARY_BASE = 10_000.0
"""The slowest rotation of a position takes nearly so many times as long as the fastest one."""

Kernel = Callable[[Operation, Sequence[Tensor], Sequence[Tensor]], Tensor]
"""A function of an operation, its inputs and its parameters that returns the operation's result."""


def run_program(
    program: Program,
    parameters: Mapping[str, Tensor],
    inputs: Tensor,
    dropout: torch.Generator | None = None,
) -> Tensor:
    """Return the logits (B, K) of images (B, 3, S, S), or (B, T, K) of texts (B, T), int64.

    Args:
        parameters: a tensor for each name of `program.parameters()`; gradients flow into them.
        dropout: the generator of the dropout masks; None: no dropout.

    Raises:
        KeyError: a parameter is missing.
    """

    def kernel(operation: Operation, operands: Sequence[Tensor]) -> Tensor:
        return run_operation(operation, operands, [parameters[p.name] for p in operation.parameters])

    return evaluate(program, inputs, kernel, dropout)


def evaluate(
    program: Program,
    network_inputs: Tensor,
    kernel: Callable[[Operation, Sequence[Tensor]], Tensor],
    dropout: torch.Generator | None = None,
) -> Tensor:
    """Return the logits of images or texts as `run_program` does; each result is freed after its last use.

    Args:
        kernel: gives the result of an operation from its inputs; it is called for all operations, in order, except for
            the image, the text, zeros and dropout.
        dropout: the generator of the dropout masks; None: no dropout.
    """
    results: dict[int, Tensor] = {}  # by position in the program
    for position, (operation, freed) in enumerate(zip(program.operations, program.freed_after, strict=True)):
        inputs = [results[source] for source in operation.inputs]
        if operation.kind in ("image", "text"):
            result = network_inputs
        elif operation.kind == "zeros":
            result = network_inputs.new_zeros(len(network_inputs), *operation.shape)
        elif operation.kind == "dropout":
            result = inputs[0] if dropout is None else _dropout(inputs[0], dropout)
        else:
            result = kernel(operation, inputs)
        results[position] = result
        for source in freed:
            del results[source]
    return results[len(program.operations) - 1]


def run_operation(operation: Operation, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """Return the result (B, …) of one operation for a batch of images, from its inputs (B, …) and parameters."""
    return KERNELS[operation.kind](operation, inputs, parameters)


def _dropout(x: Tensor, generator: torch.Generator) -> Tensor:
    """Drop half of the elements and double the others.

    The mask is random numbers of the CPU, so that it does not depend on the device.
    """
    keep = torch.rand(x.shape, generator=generator) < 0.5
    return x * (2.0 * upload(keep, x.device, x.dtype))


def _conv(operation: Operation, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    sh, sw, ph, pw, dilation, groups = operation.settings
    x_BCYX, weight = inputs[0], parameters[0]
    if weight.device.type == "cpu":
        # PyTorch takes up to ten times as long where ends of the kernel meet nothing but padding.
        height, width = weight.shape[2:]
        unmet_h = _unmet(x_BCYX.shape[2], height, sh, ph, dilation)
        unmet_w = _unmet(x_BCYX.shape[3], width, sw, pw, dilation)
        weight = weight[:, :, unmet_h : height - unmet_h, unmet_w : width - unmet_w]
        ph, pw = ph - unmet_h * dilation, pw - unmet_w * dilation
    if groups > 1 and is_covered(weight, (sh, sw, ph, pw, dilation, groups)):
        return depthwise_conv(x_BCYX, weight, sh, dilation)
    return F.conv2d(x_BCYX, weight, None, (sh, sw), (ph, pw), dilation, groups)


def _unmet(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Return how many positions at each end of a kernel meet nothing but padding, along one axis of a map.

    No more are counted than can be left out together with the padding that they meet.
    """
    last = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride * stride - padding  # where the last one begins
    unmet = 0
    while (
        padding >= (unmet + 1) * dilation
        and last + unmet * dilation < 0
        and (kernel - 1 - unmet) * dilation - padding >= size
    ):
        unmet += 1
    return unmet


def _batch_norm(operation: Operation, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """Normalise with the statistics of the batch, in training and in evaluation alike."""
    weight_C, bias_C = parameters
    return F.batch_norm(inputs[0], None, None, weight_C, bias_C, training=True)


def _layer_norm(operation: Operation, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    weight, bias = parameters
    return F.layer_norm(inputs[0], weight.shape, weight, bias)


def _max_pool(operation: Operation, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    kernel, stride, padding = operation.settings
    return F.max_pool2d(inputs[0], kernel, stride, padding)


def _avg_pool(operation: Operation, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    kernel, stride, padding = operation.settings
    return F.avg_pool2d(inputs[0], kernel, stride, padding, count_include_pad=False)


def _shift(operation: Operation, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """Cut off the first row and column, and pad with zeros at the far edge to the same size."""
    x_BCYX = inputs[0]
    return F.pad(x_BCYX[:, :, 1:, 1:], (0, 1, 0, 1))


def _subsample(operation: Operation, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    (stride,) = operation.settings
    x_BCYX = inputs[0]
    return x_BCYX[:, :, ::stride, ::stride]


def _attention(operation: Operation, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """Return softmax(qkᵀ/√d)v of each head; the input holds q, k and v side by side."""
    (heads,) = operation.settings
    return _attended(*_by_head(inputs[0], heads))


def _causal_attention(operation: Operation, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """Return the attention of each token to itself and to those before it; the input is that of `_attention`."""
    heads, is_rotary = operation.settings
    q_BATd, k_BATd, v_BATd = _by_head(inputs[0], heads)
    if is_rotary:
        q_BATd, k_BATd = rotated(q_BATd), rotated(k_BATd)
    return _attended(q_BATd, k_BATd, v_BATd, is_causal=True)


def _by_head(qkv_BTD: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the queries, keys and values (B, A, T, d) that lie side by side."""
    B, T, D = qkv_BTD.shape
    q_BATd, k_BATd, v_BATd = qkv_BTD.view(B, T, 3, heads, D // (3 * heads)).permute(2, 0, 3, 1, 4)
    return q_BATd, k_BATd, v_BATd


def _attended(q_BATd: Tensor, k_BATd: Tensor, v_BATd: Tensor, is_causal: bool = False) -> Tensor:
    """Return the means of the values by each query's attention, the heads side by side (B, T, D)."""
    if q_BATd.dtype == torch.bfloat16 and q_BATd.device.type == "cpu":
        # PyTorch's fused kernel takes ten times as long for its backward pass here (2.14, 121 tokens).
        scores_BATT = q_BATd * q_BATd.shape[-1] ** -0.5 @ k_BATd.transpose(-1, -2)
        if is_causal:
            later_TT = torch.ones(scores_BATT.shape[-2:], dtype=torch.bool, device=scores_BATT.device).triu(1)
            scores_BATT = scores_BATT.masked_fill(later_TT, -torch.inf)
        shares_BATT = scores_BATT.softmax(-1, dtype=torch.float32)  # four times as fast as in bfloat16
        x_BATd: Tensor = shares_BATT.to(v_BATd.dtype) @ v_BATd
    else:
        x_BATd = F.scaled_dot_product_attention(q_BATd, k_BATd, v_BATd, is_causal=is_causal)
    return x_BATd.transpose(1, 2).flatten(2)


def rotated(x_BATd: Tensor) -> Tensor:
    """Return queries or keys whose pairs of channels are rotated in proportion to the position.

    So their products depend on differences of positions alone: Su et al., "RoFormer: Enhanced Transformer with Rotary
    Position Embedding", 2021, eq. 34. Channel i of the first half and of the second half are a pair.
    """
    _, _, T, d = x_BATd.shape
    speeds = ROTARY_BASE ** -(torch.arange(d // 2, device=x_BATd.device) / (d // 2))
    angles_Td = torch.outer(torch.arange(T, device=x_BATd.device), speeds)
    cosines, sines = angles_Td.cos().to(x_BATd.dtype), angles_Td.sin().to(x_BATd.dtype)
    first, second = x_BATd.chunk(2, -1)
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines], -1)


def _untokens(operation: Operation, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    x_BTD = inputs[0]
    return x_BTD.transpose(1, 2).reshape(-1, *operation.shape)


def _add(operation: Operation, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    total = inputs[0]
    for x in inputs[1:]:
        total = total + x
    return total


KERNELS: dict[str, Kernel] = {
    "conv": _conv,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "linear": lambda o, x, p: F.linear(x[0], *p),
    "relu": lambda o, x, p: F.relu(x[0]),
    "gelu": lambda o, x, p: F.gelu(x[0]),
    "hardswish": lambda o, x, p: F.hardswish(x[0]),
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "global_pool": lambda o, x, p: x[0].mean((2, 3)),
    "squeeze": lambda o, x, p: x[0].mean((2, 3)),
    "flatten": lambda o, x, p: x[0].flatten(1),
    "shift": _shift,
    "subsample": _subsample,
    "add": _add,
    "concat": lambda o, x, p: torch.cat(list(x), 1),
    "position_encoding": lambda o, x, p: p[0],
    "tokens": lambda o, x, p: x[0].flatten(2).transpose(1, 2),
    "untokens": _untokens,
    "attention": _attention,
    "causal_attention": _causal_attention,
    "embedding": lambda o, x, p: F.embedding(x[0], p[0]),
    "scale": lambda o, x, p: x[0] * x[1][:, :, None, None],
}
"""The kernel of each kind of operation, except for the image, the text, zeros and dropout (see `evaluate`)."""
