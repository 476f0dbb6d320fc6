"""Parts that run in contexts, through functions of their own, or by branches on values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from awkward_networks.base import SIDE, C, Part, conv, parameter, part


@part
def checkpointed() -> nn.Module:
    return Part(lambda self, x: checkpoint(self.body, x, use_reentrant=False), body=nn.Sequential(conv(), nn.ReLU()))


@part
def checkpointed_reentrant() -> nn.Module:
    return Part(lambda self, x: checkpoint(self.body, x, use_reentrant=True), body=nn.Sequential(conv(), nn.ReLU()))


@part
def with_autocast() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.conv(x)
        return y.float()

    return Part(forward, conv=conv())


@part
def without_gradients() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.frozen(x)
        return self.conv(x + y)

    return Part(forward, conv=conv(), frozen=conv(1))


@part
def detached() -> nn.Module:
    return Part(lambda self, x: x + self.side(x).detach() + self.data_of(x).data, side=conv(1), data_of=conv(1))


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        return x * scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, scale = ctx.saved_tensors
        return gradient * scale, (gradient * x).sum((0, 2, 3)).view_as(scale)


@part
def custom_function() -> nn.Module:
    return Part(lambda self, x: Double.apply(x, self.scale), scale=parameter(C, 1, 1))


@part
def function_without_a_primitive() -> nn.Module:
    return Part(lambda self, x: torch.atan2(x, self.odd), odd=parameter(C, SIDE, SIDE))


@part
def branch_on_a_value() -> nn.Module:
    return Part(lambda self, x: self.conv(x) if x.sum() < 1e9 else x, conv=conv())


@part
def rounds_a_parameter() -> nn.Module:
    return Part(lambda self, x: x * (self.level > 0.0).float(), level=parameter(C, 1, 1))


@part
def reads_a_parameter_as_a_number() -> nn.Module:
    return Part(lambda self, x: x * float(self.level), level=parameter())
