"""Functions that autograd records on the meta device but that are not computed there.

PyTorch decomposes them in Python on that device, down to the last broadcast; to trace a network, the shape of the
result is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class Recorded(torch.autograd.Function):
    """A function whose result has the shape of its first argument; the name of its class tells which one it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *others: Tensor) -> Tensor:
        return torch.empty_like(x)

    @classmethod
    def of(cls, x: Tensor, *others: Tensor | None) -> Tensor:
        """The recorded result; autograd would leave out arguments that are None, so constants stand for them."""
        return cls.apply(x, *(x.new_empty(0) if tensor is None else tensor for tensor in others))


class _Activation(Recorded):
    pass


class _BatchNorm(Recorded):
    pass


class _LayerNorm(Recorded):
    pass


class _Linear(Recorded):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        _require(x.shape[-1], weight.shape[1], "features")
        return x.new_empty(*x.shape[:-1], len(weight))


class _ScaledDotProductAttention(Recorded):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        return query.new_empty(*query.shape[:-1], value.shape[-1])


def _require(have: Any, expected: Any, what: str) -> None:
    """What the function itself would refuse: the image size may be wrong."""
    if have != expected:
        raise RuntimeError(f"the input has {have} {what}, expected {expected}")


def _activation(input: Tensor, *_: Any, **__: Any) -> Tensor:
    return _Activation.of(input)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return _Linear.of(input, weight, bias)


def _batch_norm(
    input: Tensor, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None, *_: Any, **__: Any
) -> Tensor:
    if weight is not None:
        _require(input.shape[1], len(weight), "channels")
    return _BatchNorm.of(input, weight, bias)


def _layer_norm(
    input: Tensor, normalized_shape: Any, weight: Any = None, bias: Any = None, *_: Any, **__: Any
) -> Tensor:
    _require(tuple(input.shape[-len(normalized_shape) :]), tuple(normalized_shape), "features")
    return _LayerNorm.of(input, weight, bias)


def _attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, *_: Any, **__: Any) -> Tensor:
    return _ScaledDotProductAttention.of(query, key, value, attn_mask)


RECORDED: dict[Callable, Callable[..., Tensor]] = {
    F.relu: _activation,
    F.gelu: _activation,
    F.silu: _activation,
    F.hardswish: _activation,
    F.linear: _linear,
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.scaled_dot_product_attention: _attention,
}


class ShapeOnly(TorchFunctionMode):
    """In this context the functions of `RECORDED` give tensors of the right shape and compute nothing."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return RECORDED.get(func, func)(*args, **(kwargs or {}))
