"""What a whole network is wrapped in."""

from __future__ import annotations

import torch
from torch import nn

from awkward_networks.base import WRAPPERS, wrapper

WRAPPERS |= {
    "bare": lambda network: network,
    "in_sequential": lambda network: nn.Sequential(nn.Sequential(network)),
    "data_parallel": lambda network: nn.DataParallel(network),
    "frozen": lambda network: network.requires_grad_(False),
}


@wrapper
def averaged(network: nn.Module) -> nn.Module:
    try:
        return torch.optim.swa_utils.AveragedModel(network)
    except RuntimeError:  # it cannot be copied
        return network


@wrapper
def with_an_optimiser(network: nn.Module) -> nn.Module:
    network.optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    return network


@wrapper
def knows_its_parent(network: nn.Module) -> nn.Module:
    for child in network.children():
        child.__dict__["parent"] = network
    return network


@wrapper
def with_gradients(network: nn.Module) -> nn.Module:
    for p in network.parameters():
        if p.is_floating_point():
            p.grad = torch.ones_like(p)
    return network


@wrapper
def compiled(network: nn.Module) -> nn.Module:
    return torch.compile(network, backend="eager")
