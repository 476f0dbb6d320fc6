"""Functions that autograd records on the meta device by the shapes of their results alone.

PyTorch decomposes these functions in Python on that device, down to the last broadcast, which takes most of the time of
a trace. To trace a network, the shapes of the results are enough.

Tensors have any number of axes here, so their names have no dimension suffixes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class Recorded(torch.autograd.Function):
    """A function whose result has the shape of its first argument; the name of its class names the operation."""

    @staticmethod
    def forward(ctx: object, *inputs: Tensor) -> Tensor:
        """Return a result of the right shape, without computing it."""
        x = inputs[0]
        return x.new_empty(x.shape) if x.is_contiguous() else torch.empty_like(x)  # which is slow without numbers

    @classmethod
    def of(cls, x: Tensor, *others: Tensor | None) -> Tensor:
        """Return the recorded result.

        Empty constants stand for arguments that are None, because autograd would leave those out.
        """
        result: Tensor = cls.apply(x, *(x.new_empty(0) if tensor is None else tensor for tensor in others))
        return result


class _Activation(Recorded):
    """Any function of single elements."""


class _BatchNorm(Recorded):
    """Batch norm of an input, with a weight and a bias."""


class _LayerNorm(Recorded):
    """Layer norm of an input, with a weight and a bias."""


class _Linear(Recorded):
    """Linear layer of an input, with a weight and a bias."""

    @staticmethod
    def forward(ctx: object, *inputs: Tensor) -> Tensor:
        """Return a result with the outputs of the weight in place of the input's features."""
        x, weight, _ = inputs
        _require(x.shape[-1], weight.shape[1], "features")
        return x.new_empty(*x.shape[:-1], len(weight))


class _GroupedMm(Recorded):
    """Product of the rows of an input with the matrices of a stack, each with those rows that it is chosen for."""

    @staticmethod
    def forward(ctx: object, *inputs: Tensor) -> Tensor:
        """Return a result with the columns of the matrices in place of the input's features."""
        x, stack = inputs
        _require(x.shape[-1], stack.shape[-2], "features")
        return x.new_empty(*x.shape[:-1], stack.shape[-1])


class _ScaledDotProductAttention(Recorded):
    """Attention of a query, a key, a value and a mask."""

    @staticmethod
    def forward(ctx: object, *inputs: Tensor) -> Tensor:
        """Return a result with the positions of the query and the features of the value."""
        query, _, value, _ = inputs
        return query.new_empty(*query.shape[:-1], value.shape[-1])


def _require(found: object, expected: object, what: str) -> None:
    """Raise RuntimeError, as the function itself would, if an input does not fit: the image size may be wrong."""
    if found != expected:
        raise RuntimeError(f"the input has {found} {what}, expected {expected}")


# The signatures below begin like those of `torch.nn.functional`; further arguments do not change the shape.


def _activation(input: Tensor, *_: object, **__: object) -> Tensor:
    return _Activation.of(input)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return _Linear.of(input, weight, bias)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *_: object,
    **__: object,
) -> Tensor:
    if weight is not None:
        _require(input.shape[1], len(weight), "channels")
    return _BatchNorm.of(input, weight, bias)


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *_: object,
    **__: object,
) -> Tensor:
    _require(tuple(input.shape[-len(normalized_shape) :]), tuple(normalized_shape), "features")
    return _LayerNorm.of(input, weight, bias)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: object, **__: object
) -> Tensor:
    return _ScaledDotProductAttention.of(query, key, value, attn_mask)


def _grouped_mm(input: Tensor, mat2: Tensor, *others: Any, **settings: Any) -> Tensor:
    if mat2.dim() != 3:  # no stack
        return torch._grouped_mm(input, mat2, *others, **settings)
    return _GroupedMm.of(input, mat2)


SHAPE_ONLY_VERSIONS: dict[Callable[..., Any], Callable[..., Tensor]] = {
    F.relu: _activation,
    F.gelu: _activation,
    F.silu: _activation,
    F.hardswish: _activation,
    F.linear: _linear,
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.scaled_dot_product_attention: _attention,
}
"""For each function of PyTorch the one that is called in its place."""

if hasattr(torch, "_grouped_mm"):  # since PyTorch 2.8; behind `F.grouped_mm`
    SHAPE_ONLY_VERSIONS[torch._grouped_mm] = _grouped_mm
