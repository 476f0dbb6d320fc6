"""Networks of a few layers, written as functions, and checks of their graphs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from examples import tiny_ghn
from torch import Tensor, nn

from ghn import Graph
from ghn.networks.operations import Parameter


class Calls(nn.Module):
    """A network that is a function of its layers and of an image."""

    def __init__(self, function: Callable[..., Tensor], **layers: nn.Module | nn.Parameter):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def named(graph: Graph) -> dict[str, tuple[str, Parameter]]:
    """Return for each parameter its primitive and its description."""
    return {p.name: (node.primitive, p) for node in graph.nodes for p in node.parameters}


def edges(graph: Graph) -> set[tuple[str, str]]:
    """Return the edges of a graph as pairs of primitives; no two nodes may have the same primitive."""
    assert len(set(graph.primitives)) == len(graph.primitives)
    return {(graph.primitives[u], graph.primitives[v]) for u, v in graph.edges}


def assert_predicted(module: nn.Module, graph: Graph) -> None:
    """Assert that the parameters on all nodes are predicted in their shapes, and finite."""
    (predicted,) = tiny_ghn().predict_parameters([graph])
    shapes = {name: p.shape for name, p in module.named_parameters() if name not in graph.not_predicted}
    assert {name: tensor.shape for name, tensor in predicted.items()} == shapes
    assert all(tensor.isfinite().all() for tensor in predicted.values())
