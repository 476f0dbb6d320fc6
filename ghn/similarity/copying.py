"""Copies: the parameters of a network, made from the trained ones of a similar network.

The nodes of both graphs are aligned (`ghn.similarity.alignment`), and a matched parameter is brought to the target's
shape:

- Channels. If there are too many, the leading ones are kept. If there are too few, each is repeated in place, as evenly
  as possible, and on the input side of a weight divided by how often it is repeated. So a layer whose inputs are
  repeated has the outputs of the source, repeated.
- Kernel positions. The central ones are kept; where there are too few, zeros surround them. So a kernel that has become
  larger computes the same.
- Attention. The queries are divided so that the products of repeated queries and keys stay the same.
- Position encodings are features: their channels and positions are cut and repeated, and not divided.

A result with several *parts* (a concatenation, the heads of attention, the queries, keys and values) is cut and
repeated part by part, if source and target have as many parts. So the copy onto a wider version of the source computes
what the source computes. Class layers are copied only for the same number of classes.

Dimensions: O/I out/in channels, Y×X kernel positions, T channels of the target.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ghn.networks.graph import Node
from ghn.networks.operations import Operation, Parameter
from ghn.networks.parameter_axes import arrange
from ghn.networks.program import Program
from ghn.similarity.alignment import align


@dataclass(frozen=True)
class Copy:
    """Copied parameters of a network by name, and their share of the elements of all its parameters, 0 to 1."""

    tensors: dict[str, Tensor]
    share: float


def copy_parameters(target: Program, source: Program, tensors: Mapping[str, Tensor]) -> Copy:
    """Return the parameters of the target that correspond to parameters of the source, in the target's shapes.

    Args:
        tensors: the source's, by name.

    Raises:
        KeyError: a tensor of the source is missing.
    """
    places, other_places = places_of(target), places_of(source)
    copied = {}
    for node, other in matched_nodes(target, source):
        for parameter, from_parameter in zip(node.parameters, other.parameters, strict=True):
            tensor = tensors[from_parameter.name].detach()
            pair = places[parameter.name], other_places[from_parameter.name]
            copied[parameter.name] = resized(tensor, parameter, node, other, *pair)
    elements = sum(tensor.numel() for tensor in copied.values())
    return Copy(copied, elements / target.num_parameters)


def matched_nodes(target: Program, source: Program) -> Iterator[tuple[Node, Node]]:
    """Yield aligned nodes of both graphs, without class layers of other numbers of classes."""
    for pair in align(target.graph, source.graph):
        node, other = target.graph.nodes[pair.target], source.graph.nodes[pair.source]
        if not node.is_class_layer or target.num_classes == source.num_classes:
            yield node, other


# Where channels come from


@dataclass(frozen=True)
class ChannelParts:
    """The channels of a result: its parts, and the pixels of a channel, if they are flattened into channels."""

    parts: tuple[int, ...]
    pixels: tuple[int, int] = (1, 1)

    @property
    def size(self) -> int:
        """The number of channels, with their pixels."""
        return sum(self.parts) * math.prod(self.pixels)


@dataclass(frozen=True)
class Place:
    """Where a parameter acts: the channels that it reads and those that it gives.

    `heads` is the number of heads of the attention whose queries, keys and values the parameter gives, else 0.
    """

    reads: ChannelParts
    gives: ChannelParts
    heads: int = 0


def places_of(program: Program) -> dict[str, Place]:
    """Return the place of each parameter of a program, by name."""
    heads_of = {
        operation.inputs[0]: operation.settings[0] for operation in program.operations if operation.kind == "attention"
    }
    results: list[ChannelParts] = []
    places: dict[str, Place] = {}
    for position, operation in enumerate(program.operations):
        inputs = [results[source] for source in operation.inputs]
        heads = heads_of.get(position, 0)
        results.append(_features(operation, inputs, program, heads))
        reads = inputs[0] if inputs else results[-1]
        places |= {parameter.name: Place(reads, results[-1], heads) for parameter in operation.parameters}
    return places


def _features(operation: Operation, inputs: list[ChannelParts], program: Program, heads: int) -> ChannelParts:
    """Return the features of an operation's result.

    Args:
        heads: of the attention that reads the result, else 0.
    """
    kind, shape = operation.kind, operation.shape
    channels = shape[-1] if len(shape) == 2 else shape[0]
    if heads:
        return ChannelParts((channels // (3 * heads),) * (3 * heads))
    if kind == "attention":
        return ChannelParts((channels // operation.settings[0],) * operation.settings[0])
    if kind == "concat":
        return ChannelParts(tuple(part for features in inputs for part in features.parts))
    if kind == "flatten":
        _, height, width = program.operations[operation.inputs[0]].shape
        return ChannelParts(inputs[0].parts, (height, width))
    is_depthwise = kind == "conv" and operation.settings[-1] == channels == inputs[0].size
    is_new = kind in ("image", "zeros", "linear", "position_encoding") or (kind == "conv" and not is_depthwise)
    if is_new or (kind == "add" and any(features.parts != inputs[0].parts for features in inputs)):
        return ChannelParts((channels,))
    return inputs[0]


# From one shape to another


def resized(tensor: Tensor, parameter: Parameter, node: Node, other: Node, place: Place, other_place: Place) -> Tensor:
    """Return the tensor of a parameter of a source's node `other` in the shape of one of the target's node."""
    assert node.shape is not None and other.shape is not None  # nodes with parameters have shapes
    out_T = channel_indices(place.gives, other_place.gives)
    if parameter.role == "encoding":
        rows, columns = (central_indices(*sizes) for sizes in zip(node.shape[2:], other.shape[2:], strict=True))
        return tensor[:, out_T][:, :, rows][:, :, :, columns].reshape(parameter.shape)
    scale_T = _query_scale(out_T, place, other_place).to(tensor)
    if parameter.role != "weight":
        return tensor[out_T] * scale_T
    weight_OIYX = tensor.reshape(other.shape)[out_T] * scale_T[:, None, None, None]
    in_T = input_indices(node.shape[1], other.shape[1], place.reads, other_place.reads)
    weight_OIYX = weight_OIYX[:, in_T] / repetitions(in_T).to(tensor)[:, None, None]
    for axis in (2, 3):
        weight_OIYX = centred(weight_OIYX, axis, node.shape[axis])
    return arrange(weight_OIYX[None], parameter)[0]


def channel_indices(target: ChannelParts, source: ChannelParts) -> Tensor:
    """Return for each channel of the target's features the one of the source's that it is made from, int64 (T,)."""
    parts, other_parts = target.parts, source.parts
    if len(parts) != len(other_parts):
        parts, other_parts = (sum(parts),), (sum(other_parts),)
    starts = np.cumsum((0, *other_parts))
    pairs = zip(parts, other_parts, starts[:-1], strict=True)
    channels = np.concatenate([leading_indices(size, other) + start for size, other, start in pairs])
    if math.prod(target.pixels) == math.prod(source.pixels) == 1:
        return torch.from_numpy(channels)
    rows, columns = (central_indices(*sizes) for sizes in zip(target.pixels, source.pixels, strict=True))
    height, width = source.pixels
    indices = (channels[:, None, None] * height + rows[:, None]) * width + columns
    return torch.from_numpy(indices.ravel())


def input_indices(size: int, other: int, reads: ChannelParts, other_reads: ChannelParts) -> Tensor:
    """Return for each input of an output channel the one of the source that it is made from, int64 (T,).

    Args:
        size, other: the inputs of an output channel of the target and of the source, fewer than the channels that the
            layers read if these are in groups.
    """
    if (size, other) == (reads.size, other_reads.size):
        return channel_indices(reads, other_reads)
    return torch.from_numpy(leading_indices(size, other))


def leading_indices(size: int, other: int) -> np.ndarray:
    """Return the first `size` of `other` positions, or all of them, each repeated in place, int64 (size,)."""
    return np.arange(size) if size <= other else np.arange(size) * other // size


def central_indices(size: int, other: int) -> np.ndarray:
    """Return the central `size` of `other` positions, or all of them, each repeated in place, int64 (size,)."""
    return leading_indices(size, other) + max(other - size, 0) // 2


def repetitions(indices_T: Tensor) -> Tensor:
    """Return how often each index is there, int64 (T,)."""
    return torch.bincount(indices_T)[indices_T]


def centred(weight: Tensor, axis: int, size: int) -> Tensor:
    """Return the central positions of an axis, or all of them between zeros, so that there are `size`."""
    other = weight.shape[axis]
    if size <= other:
        return weight.narrow(axis, (other - size) // 2, size)
    shape = list(weight.shape)
    shape[axis] = size
    result = weight.new_zeros(shape)
    result.narrow(axis, (size - other) // 2, other).copy_(weight)
    return result


def _query_scale(out_T: Tensor, place: Place, other_place: Place) -> Tensor:
    """Return a factor for each output channel, which is not 1 only for queries that are repeated, float64 (T,).

    Attention divides the product of a query and a key by the root of their length. Both are repeated. The factor of the
    queries makes the quotient that of the source.
    """
    scale_T = torch.ones(len(out_T), dtype=torch.float64)
    length, other_length = place.gives.parts[0], other_place.gives.parts[0]
    if place.heads and place.heads == other_place.heads and length > other_length:
        queries = slice(0, place.heads * length)
        scale_T[queries] = math.sqrt(length / other_length) / repetitions(out_T)[queries]
    return scale_T
