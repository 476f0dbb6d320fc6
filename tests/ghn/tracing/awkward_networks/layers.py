"""Usual layers, which are used in place, twice, or as functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops.misc import FrozenBatchNorm2d

from awkward_networks.base import PARTS, SIDE, C, Part, conv, parameter, part

PARTS |= {
    "convolution": conv,
    "grouped": lambda: conv(groups=2),
    "depthwise": lambda: conv(groups=C),
    "transposed": lambda: nn.ConvTranspose2d(C, C, 3, padding=1),
    "batch_norm": lambda: nn.BatchNorm2d(C),
    "batch_norm_without_statistics": lambda: nn.BatchNorm2d(C, track_running_stats=False),
    "batch_norm_without_weights": lambda: nn.BatchNorm2d(C, affine=False),
    "group_norm": lambda: nn.GroupNorm(2, C),
    "instance_norm": lambda: nn.InstanceNorm2d(C, affine=True, track_running_stats=True),
    "layer_norm": lambda: nn.LayerNorm([C, SIDE, SIDE]),
    "frozen_batch_norm": lambda: FrozenBatchNorm2d(C),
    "dropout": lambda: nn.Dropout(0.5),
    "prelu": lambda: nn.PReLU(C),
    "deep_sequential": lambda: nn.Sequential(nn.Sequential(nn.Sequential(conv(), nn.ReLU())), nn.Identity()),
    "empty_sequential": nn.Sequential,
    "frozen": lambda: conv().requires_grad_(False),
}


@part
def convolution_1d() -> nn.Module:
    return Part(lambda self, x: self.conv(x.flatten(2)).view_as(x), conv=nn.Conv1d(C, C, 3, padding=1))


@part
def residual_in_place() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        out = self.conv(x)
        out += x
        out.mul_(0.5).clamp_(-10, 10)
        out[:, 0] = out[:, 1]
        return out

    return Part(forward, conv=conv())


@part
def writes_features_into_zeros() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        out = torch.zeros(x.shape, device=x.device)
        out[:, :2] = self.conv(x)[:, :2]
        return out + x

    return Part(forward, conv=conv())


@part
def functional_convolution() -> nn.Module:
    return Part(lambda self, x: F.relu(F.conv2d(x, self.weight, padding=1)), weight=parameter(C, C, 3, 3))


@part
def einsum() -> nn.Module:
    return Part(lambda self, x: torch.einsum("bchw,cd->bdhw", x, self.weight), weight=parameter(C, C))


@part
def matrix_product_on_the_left() -> nn.Module:
    return Part(lambda self, x: (self.weight @ x.flatten(2)).view_as(x), weight=parameter(C, C))


@part
def used_twice() -> nn.Module:
    return Part(lambda self, x: self.conv(F.relu(self.conv(x))), conv=conv())


@part
def tied() -> nn.Module:
    both = nn.Sequential(conv(), nn.ReLU(), conv())
    both[2].weight = both[0].weight
    return both


@part
def tied_layers() -> nn.Module:
    layer = conv()
    return nn.Sequential(layer, nn.ReLU(), layer)
