"""The decoding of node states to parameters of the target shapes.

Source: Knyazev et al., "Parameter Prediction for Unseen Deep Architectures", NeurIPS 2021, section 3 and
appendix B.

Nodes that need the same kernel and the same number of channels are decoded together, and only at the kernel
positions and channels that they need.

Dimensions: N nodes, M nodes of a group, H hidden, W most channels of the decoders, O/I out/in channels, Y×X kernel
positions; 2 stands for the rows of scales and of biases.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ghn.models.dirac import OPEN, Signals, parametrised, signals_of
from ghn.models.vector_decoder import VectorDecoder
from ghn.models.weight_decoder import WeightDecoder
from ghn.networks.devices import upload
from ghn.networks.graph import Node
from ghn.networks.graph_batch import GraphBatch
from ghn.networks.operations import Parameter
from ghn.networks.parameter_axes import Shape, arrange, fan_in

Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)


class _Prediction(NamedTuple):
    """A predicted parameter of a node."""

    node: int
    """Position in `GraphBatch.nodes`."""
    parameter: Parameter
    tensor: Tensor


class ParameterDecoder(nn.Module):
    """A decoder of all parameters of a batch's nodes, from the states of these nodes.

    Args:
        weights: decodes weights and position encodings.
        vectors: decodes scales and biases; None: `weights` does.
        normalise: whether to scale weights by their fan-in, and to bound scales to (0, 2) and biases to (-1, 1).
        dirac: whether convolutions are predicted as a change of ones that pass features on: see `ghn.models.dirac`.
    """

    def __init__(self, weights: WeightDecoder, vectors: VectorDecoder | None, normalise: bool, dirac: bool = False):
        super().__init__()
        self.weights, self.vectors, self.normalise, self.dirac = weights, vectors, normalise, dirac

    def last_layers(self) -> list[nn.Linear]:
        """Return the linear layers whose outputs are the predicted numbers."""
        return self.weights.last_layers() + ([] if self.vectors is None else self.vectors.last_layers())

    def forward(self, h_NH: Tensor, batch: GraphBatch) -> list[dict[str, Tensor]]:
        """Return for each graph its parameters by name, in the shapes of the target networks.

        Args:
            h_NH: states (N, H) of the batch's nodes. The parameters of each graph are in the order of its nodes here.
        """
        predicted: list[dict[str, Tensor]] = [{} for _ in range(batch.num_graphs)]
        for i, node in enumerate(batch.nodes):  # names first, because nodes are decoded in the order of their shapes
            predicted[batch.graph_of[i]].update(dict.fromkeys(p.name for p in node.parameters))
        with_weight = [i for i, node in enumerate(batch.nodes) if _has_weight(node)]
        with_vector = [i for i, node in enumerate(batch.nodes) if node.parameters and not _has_weight(node)]
        signals = signals_of(batch) if self.dirac else None
        for i, parameter, tensor in (
            *self._weights(h_NH, batch, with_weight, signals),
            *self._vectors(h_NH, batch, with_vector, signals),
        ):
            predicted[batch.graph_of[i]][parameter.name] = tensor
        return predicted

    def one_by_one(self, h_NH: Tensor, batch: GraphBatch) -> Iterator[tuple[str, Tensor]]:
        """Yield the names and values of all parameters, a node at a time, so that no others are in memory.

        Args:
            h_NH: states (N, H) of the batch's nodes.
        """
        signals = signals_of(batch) if self.dirac else None
        for i, node in enumerate(batch.nodes):
            if node.parameters:
                decoded = self._weights if _has_weight(node) else self._vectors
                for _, parameter, tensor in decoded(h_NH, batch, [i], signals):
                    yield parameter.name, tensor

    def repeats(self, node: Node) -> bool:
        """Return whether channels of a node's weight repeat, because it has more than are decoded."""
        if not _has_weight(node):
            return False
        is_class_layer, (out, inputs, _, _) = self._decoded_size(node)
        has_all_out = out >= _shape(node)[0] or (is_class_layer and self.weights.has_class_rows)
        return not has_all_out or inputs < _shape(node)[1]

    def _weights(
        self, h_NH: Tensor, batch: GraphBatch, nodes: list[int], signals: Signals | None
    ) -> Iterator[_Prediction]:
        """Yield the weights and position encodings of nodes."""
        # Members with the same target shape follow each other, so that each target's rows are a view.
        targets = {
            size: list(_group(members, lambda i: batch.nodes[i].parameters[0][1:]).values())
            for size, members in _group(nodes, lambda i: self._decoded_size(batch.nodes[i])).items()
        }
        groups = [[i for members in of_size for i in members] for of_size in targets.values()]
        decoded_groups = self.weights(_states(h_NH, groups), [size for _, size in targets])
        for ((is_class_layer, _), of_size), decoded_MOIYX in zip(targets.items(), decoded_groups, strict=True):
            if is_class_layer and self.weights.has_class_rows:
                decoded_MOIYX = self.weights.classification(decoded_MOIYX)[..., None, None]
            parts = decoded_MOIYX.split_with_sizes([len(members) for members in of_size])
            for members, part_MOIYX in zip(of_size, parts, strict=True):
                yield from self._in_target_shape(part_MOIYX, batch, members, signals)

    def _decoded_size(self, node: Node) -> tuple[bool, Shape]:
        """Return whether a node is a class layer, and the shape that is decoded for it."""
        return node.is_class_layer, self.weights.decoded_shape(_shape(node), node.is_class_layer)

    def _in_target_shape(
        self, decoded_MOIYX: Tensor, batch: GraphBatch, members: list[int], signals: Signals | None
    ) -> Iterator[_Prediction]:
        """Yield the weights of nodes that have the same target shape, normalised and in that shape."""
        node = batch.nodes[members[0]]
        parameter, shape = node.parameters[0], _shape(node)
        if self.normalise and parameter.role == "weight":
            decoded_MOIYX = decoded_MOIYX * _weight_scale(parameter, shape)
        weights_MOIYX = _to_shape(decoded_MOIYX, shape)
        if signals is not None and parameter.role == "weight":
            weights_MOIYX = parametrised(weights_MOIYX, parameter, node.is_class_layer, signals, members)
        tensors = arrange(weights_MOIYX, parameter)
        for i, tensor in zip(members, tensors.unbind(), strict=True):
            yield _Prediction(i, batch.nodes[i].parameters[0], tensor)

    def _vectors(
        self, h_NH: Tensor, batch: GraphBatch, nodes: list[int], signals: Signals | None
    ) -> Iterator[_Prediction]:
        """Yield the scales and biases of nodes; those of equal shapes are decoded together."""
        groups = _group(
            nodes, lambda i: (batch.nodes[i].is_class_layer, tuple(p[1:] for p in batch.nodes[i].parameters))
        )
        states = _states(h_NH, groups.values())
        for (is_class_layer, _), members, h_MH in zip(groups, groups.values(), states, strict=True):
            parameters = batch.nodes[members[0]].parameters
            rows_M2W = self._rows(h_MH, parameters[0].size)
            for position, parameter in enumerate(parameters):
                is_scale = parameter.role == "scale"
                values_MW = rows_M2W[:, 0 if is_scale else 1]
                if is_class_layer and not is_scale and self.vectors is not None:
                    values_MW = self.vectors.classification(rows_M2W)
                if self.normalise:
                    values_MW = 2 * torch.sigmoid(values_MW / 2) if is_scale else torch.tanh(values_MW / 5)
                if signals is not None and signals.opens_gate[members].any():
                    opens_gate_M = torch.from_numpy(signals.opens_gate[members])
                    values_MW = values_MW + OPEN * upload(opens_gate_M, values_MW.device, values_MW.dtype)[:, None]
                tensors = _tile(values_MW, 1, parameter.size).reshape(-1, *parameter.shape)
                for i, tensor in zip(members, tensors.unbind(), strict=True):
                    yield _Prediction(i, batch.nodes[i].parameters[position], tensor)

    def _rows(self, h_MH: Tensor, length: int) -> Tensor:
        """Return the rows (M, 2, ·) of scales and of biases of nodes, for vectors of a length."""
        if self.vectors is None:
            return self.weights.vectors(h_MH, length)
        rows_M2W: Tensor = self.vectors(h_MH)
        return rows_M2W


def _has_weight(node: Node) -> bool:
    return bool(node.parameters) and node.parameters[0].role in ("weight", "encoding")


def _shape(node: Node) -> Shape:
    assert node.shape is not None, "a node with parameters has a shape"
    return node.shape


def _group(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """Return the items by key, in the order in which the keys appear."""
    groups: dict[Key, list[Item]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


def _states(h_NH: Tensor, groups: Collection[list[int]]) -> Sequence[Tensor]:
    """Return the states (M, H) of the nodes of each group; one upload of indices serves all."""
    if not groups:
        return []
    index = upload(torch.tensor([i for members in groups for i in members]), h_NH.device)
    return h_NH.index_select(0, index).split_with_sizes([len(members) for members in groups])


def _weight_scale(parameter: Parameter, shape: Shape) -> float:
    """Return √(β / fan-in) of a weight.

    β is 2, but 1 for depthwise convolutions and for the first of a 1×7, 7×1 pair.
    """
    is_conv = len(parameter.shape) > 2 and parameter.axis_order in ("plain", "transposed", "volume")
    is_flat = len(parameter.shape) == 4 and shape[2] < shape[3]
    return math.sqrt((1 if is_conv and (shape[1] == 1 or is_flat) else 2) / fan_in(parameter, shape))


def _to_shape(decoded_MOIYX: Tensor, shape: Shape) -> Tensor:
    """Return decoded weights in a node's shape: kernels resized, channels repeated and cut.

    Kernels larger than the decoder's largest are resized bilinearly, as is usual for position encodings.
    """
    out, inputs, *kernel = shape
    if list(decoded_MOIYX.shape[3:]) != kernel:
        resized = F.interpolate(decoded_MOIYX.flatten(0, 1), size=kernel, mode="bilinear", align_corners=False)
        decoded_MOIYX = resized.view(*decoded_MOIYX.shape[:3], *kernel)
    return _tile(_tile(decoded_MOIYX, 1, out), 2, inputs)


def _tile(x: Tensor, dim: int, size: int) -> Tensor:
    """Return a tensor of any shape, repeated along one dimension until it is long enough, then cut."""
    length = x.shape[dim]
    if length == size:
        return x
    if length > size:
        return x.narrow(dim, 0, size)
    repeats = -(-size // length)
    copies = x.unsqueeze(dim).expand(*x.shape[:dim], repeats, *x.shape[dim:])
    return copies.flatten(dim, dim + 1).narrow(dim, 0, size)
