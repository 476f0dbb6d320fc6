"""From node states to parameters of the target shapes.

Source: Knyazev et al., "Parameter Prediction for Unseen Deep Architectures", NeurIPS 2021, section 3 and
appendix B.

Nodes that need the same kernel and the same number of channels are decoded together, and only at the kernel
positions and channels that they need. Dimensions: n nodes of a group, H hidden, S largest kernel, O/I out/in
channels, Y×X kernel positions.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ghn.models.conv_decoder import ConvDecoder
from ghn.models.vector_decoder import VectorDecoder
from ghn.networks.graph import Node
from ghn.networks.graph_batch import GraphBatch
from ghn.networks.operations import Parameter
from ghn.networks.parameter_axes import Shape, arrange, fan_in

Item = TypeVar("Item")


class ParameterDecoder(nn.Module):
    """Predicts the parameters of all nodes of a batch from their states."""

    def __init__(self, hidden: int, kernel: int, num_classes: int, normalise: bool):
        super().__init__()
        self.widest, self.kernel, self.normalise = 2 * hidden, kernel, normalise
        self.weights = ConvDecoder(hidden, kernel, num_classes)
        self.vectors = VectorDecoder(hidden, num_classes)

    def forward(self, h_NH: Tensor, batch: GraphBatch) -> list[dict[str, Tensor]]:
        """For each graph its parameters by name, in the shapes of the target networks and the order of its nodes."""
        predicted: list[dict[str, Tensor]] = [{} for _ in range(batch.num_graphs)]
        for i, node in enumerate(batch.nodes):  # names first: decoding goes by shape
            predicted[batch.graph_of[i]].update(dict.fromkeys(p.name for p in node.parameters))
        with_weight = [i for i, node in enumerate(batch.nodes) if _has_weight(node)]
        with_vector = [i for i, node in enumerate(batch.nodes) if node.parameters and not _has_weight(node)]
        for i, parameter, tensor in (
            *self._weights(h_NH, batch, with_weight),
            *self._vectors(h_NH, batch, with_vector),
        ):
            predicted[batch.graph_of[i]][parameter.name] = tensor
        return predicted

    def _weights(self, h: Tensor, batch: GraphBatch, indices: list[int]) -> Iterator[tuple[int, Parameter, Tensor]]:
        groups = _group(indices, lambda i: self._needed(batch.nodes[i]))
        decoded_groups = self.weights(
            [h[members] for members in groups.values()],
            [(self.widest if is_class_layer else out, *rest) for is_class_layer, out, *rest in groups],
        )
        for (is_class_layer, *_), members, decoded in zip(groups, groups.values(), decoded_groups, strict=True):
            if is_class_layer:
                decoded = self.weights.classification(decoded)[..., None, None]
            targets = _group(range(len(members)), lambda j: batch.nodes[members[j]].parameters[0][1:])  # noqa: B023
            for rows in targets.values():
                part = decoded if len(rows) == len(members) else decoded[rows]
                node = batch.nodes[members[rows[0]]]
                parameter = node.parameters[0]
                if self.normalise and parameter.role == "weight":
                    part = part * _weight_scale(parameter, node.shape)
                part = arrange(_to_shape(part, node.shape), parameter)
                for row, tensor in zip(rows, part.unbind(), strict=True):
                    yield members[row], batch.nodes[members[row]].parameters[0], tensor

    def _needed(self, node: Node) -> tuple[bool, int, int, int, int]:
        out, inputs, kh, kw = node.shape
        kernel = (min(kh, self.kernel), min(kw, self.kernel))
        return node.is_class_layer, min(out, self.widest), min(inputs, self.widest), *kernel

    def _vectors(self, h: Tensor, batch: GraphBatch, indices: list[int]) -> Iterator[tuple[int, Parameter, Tensor]]:
        groups = _group(indices, lambda i: (batch.nodes[i].is_class_layer, *(p[1:] for p in batch.nodes[i].parameters)))
        for (is_class_layer, *_), members in groups.items():
            rows = self.vectors(h[members])
            for position, parameter in enumerate(batch.nodes[members[0]].parameters):
                is_scale = parameter.role == "scale"
                values = rows[:, 0 if is_scale else 1]
                if is_class_layer and not is_scale:
                    values = self.vectors.classification(rows)
                if self.normalise:
                    values = 2 * torch.sigmoid(values / 2) if is_scale else torch.tanh(values / 5)
                values = _tile(values, 1, parameter.size).reshape(-1, *parameter.shape)
                for i, tensor in zip(members, values.unbind(), strict=True):
                    yield i, batch.nodes[i].parameters[position], tensor


def _has_weight(node: Node) -> bool:
    return bool(node.parameters) and node.parameters[0].role in ("weight", "encoding")


def _group(items: Sequence[Item] | range, key) -> dict:
    """The items by key, in order of appearance."""
    groups: dict = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


def _weight_scale(parameter: Parameter, shape: Shape) -> float:
    """√(β / fan-in) of a weight: β is 2, but 1 for depthwise convolutions and for the first of a 1×7, 7×1 pair."""
    is_conv = len(parameter.shape) > 2 and parameter.axis_order in ("plain", "transposed", "volume")
    flat = len(parameter.shape) == 4 and shape[2] < shape[3]
    return math.sqrt((1 if is_conv and (shape[1] == 1 or flat) else 2) / fan_in(parameter, shape))


def _to_shape(decoded: Tensor, shape: Shape) -> Tensor:
    """Decoded weights (n, O, I, Y, X) in a node's shape: positions resized, channels repeated and cut.

    Kernels larger than the decoder's largest are resized bilinearly, as is usual for position encodings.
    """
    out, inputs, *kernel = shape
    if list(decoded.shape[3:]) != kernel:
        resized = F.interpolate(decoded.flatten(0, 1), size=kernel, mode="bilinear", align_corners=False)
        decoded = resized.view(*decoded.shape[:3], *kernel)
    return _tile(_tile(decoded, 1, out), 2, inputs)


def _tile(x: Tensor, dim: int, size: int) -> Tensor:
    """Repeated along one dimension until it is long enough, then cut."""
    have = x.shape[dim]
    if have == size:
        return x
    if have > size:
        return x.narrow(dim, 0, size)
    repeats = [1] * x.dim()
    repeats[dim] = -(-size // have)
    return x.repeat(repeats).narrow(dim, 0, size)
