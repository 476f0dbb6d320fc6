"""Parameters of unusual kinds, and parameters that are computed from others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

from awkward_networks.base import SIDE, C, Part, conv, image, parameter, part, tokens


@part
def unused_parameters() -> nn.Module:
    return Part(lambda self, x: self.conv(x), conv=conv(), spare=nn.Linear(2, 3), alone=parameter(5))


@part
def result_is_thrown_away() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.side(x)
        return self.conv(x)

    return Part(forward, conv=conv(), side=conv(1))


@part
def empty_parameter() -> nn.Module:
    return Part(lambda self, x: self.conv(x), conv=conv(), empty=nn.Parameter(torch.empty(0)), none=parameter(0, 3))


@part
def added_empty_parameter() -> nn.Module:
    return Part(lambda self, x: torch.cat([x.flatten(), self.empty]).view_as(x), empty=nn.Parameter(torch.empty(0)))


@part
def whole_number_parameter() -> nn.Module:
    order = nn.Parameter(torch.arange(C), requires_grad=False)
    return Part(lambda self, x: x[:, self.order], order=order)


@part
def truth_parameter() -> nn.Module:
    mask = nn.Parameter(torch.ones(C, 1, 1, dtype=torch.bool), requires_grad=False)
    return Part(lambda self, x: x * self.mask, mask=mask)


@part
def scalar_parameters() -> nn.Module:
    return Part(lambda self, x: x * self.scale.exp() + self.shift, scale=parameter(), shift=parameter(1))


@part
def norm_of_parameters() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return x + self.norm(self.table)[0].view(C, 1, 1)

    return Part(forward, norm=nn.LayerNorm(C), table=parameter(2, C))


@part
def positions() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        t = torch.cat([self.token.expand(len(x), -1, -1), tokens(x)], 1) + self.places
        return image(t[:, 1:]) + t[:, 0].view(-1, C, 1, 1)

    return Part(forward, token=parameter(1, 1, C), places=parameter(1, SIDE * SIDE + 1, C))


@part
def embedding_with_padding() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        rows = self.table(torch.arange(3, device=x.device)).mean(0)
        return x + rows.view(C, 1, 1)

    return Part(forward, table=nn.Embedding(5, C, padding_idx=1))


@part
def embedding_of_features() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        index = (x[:, 0].sigmoid() * 4).long()
        return x + self.table(index).permute(0, 3, 1, 2)

    return Part(forward, table=nn.Embedding(5, C))


class Tagged(nn.Parameter):
    """A parameter with attributes and a method."""

    def scaled(self) -> Tensor:
        return self * self.width


@part
def parameter_with_attributes() -> nn.Module:
    weight = Tagged(torch.randn(C, C) * 0.1)
    weight.width, weight.calls = 2.0, []

    def forward(self: Any, x: Tensor) -> Tensor:
        self.weight.calls.append(1)
        self.weight.last = x
        return torch.einsum("bchw,cd->bdhw", x, self.weight.scaled())

    return Part(forward, weight=weight)


@part
def parameters_in_a_list_too() -> nn.Module:
    made = Part(lambda self, x: F.conv2d(x, self.weights[0]), weight=parameter(C, C, 1, 1))
    made.weights = [made.weight]
    return made


@part
def writes_into_parameters_in_a_list() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.weights[0].data.mul_(0.5)
        return F.conv2d(x, self.weight)

    made = Part(forward, weight=parameter(C, C, 1, 1))
    made.weights = [made.weight]
    return made


@part
def pruned() -> nn.Module:
    layer = conv()
    prune.l1_unstructured(layer, "weight", amount=0.3)
    return layer


@part
def parameter_lists() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        for scale in self.scales:
            x = x * (1 + scale)
        return x + self.shifts["a"]

    scales = nn.ParameterList([parameter(C, 1, 1) for _ in range(2)])
    return Part(forward, scales=scales, shifts=nn.ParameterDict({"a": parameter(C, 1, 1)}))


@part
def old_spectral_norm() -> nn.Module:
    return nn.utils.spectral_norm(conv())


@part
def spectral_norm() -> nn.Module:
    return parametrizations.spectral_norm(conv())


@part
def old_weight_norm() -> nn.Module:
    return nn.utils.weight_norm(conv())


@part
def weight_norm() -> nn.Module:
    return parametrizations.weight_norm(conv())


@part
def orthogonal() -> nn.Module:
    made = Part(lambda self, x: image(self.layer(tokens(x))), layer=nn.Linear(C, C))
    parametrizations.orthogonal(made.layer)
    return made


class Symmetric(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w.triu() + w.triu(1).transpose(-1, -2)


@part
def own_parametrisation_without_inverse() -> nn.Module:
    made = Part(lambda self, x: image(self.layer(tokens(x))), layer=nn.Linear(C, C))
    parametrize.register_parametrization(made.layer, "weight", Symmetric())
    return made


@part
def standardised_weight() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.var((1, 2, 3), keepdim=True) + 1e-5).sqrt()
        return F.conv2d(x, w * self.gain, padding=1)

    return Part(forward, weight=parameter(C, C, 3, 3), gain=parameter(C, 1, 1, 1))
