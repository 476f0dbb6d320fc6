"""The Dirac parametrisation: a hypernetwork predicts how convolutions differ from ones that pass features on.

A convolution's weight is D + P, where P is predicted and D, the Dirac part, has a one at the kernel's centre between
channels of the same number. So a network of any depth passes the features of its stem on before anything is learned,
and these keep their meaning from layer to layer and from network to network. Source: Zagoruyko and Komodakis,
"DiracNets: Training Very Deep Neural Networks Without Skip-Connections", 2017, eq. 4, for the weights of one network.

Where features are not normalised next, they would grow with each sum of the network, and with the weights as these are
learned. There the rows of D + P are standardised: they get mean zero, so that they do not answer to what all features
have in common, and the length of D's (Brock et al., "Characterizing signal propagation to close the performance gap in
unnormalized ResNets", ICLR 2021, eq. 2). A gain makes up for the growth that the graph implies (`signals_of`).

In attention, the values and the output projection pass features on in the same way, and queries and keys are made
smaller, so that at first every token reads nearly the mean of all. Trained attention has such identity parts: Trockman
and Kolter, "Mimetic Initialization of Self-Attention Layers", ICML 2023.

Dimensions: N nodes, M nodes of a group, O/I out/in channels, Y×X kernel positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ghn.networks.devices import upload
from ghn.networks.graph import Node
from ghn.networks.graph_batch import GraphBatch
from ghn.networks.operations import Parameter
from ghn.networks.parameter_axes import Shape

STEM_FREQUENCIES = 8
"""Number of different filters in a stem's bank; further channels repeat them."""

PRODUCTS = ("conv", "sep_conv", "dil_conv")
"""Primitives whose weights are those of convolutions or linear layers."""

NORMS = ("bn", "ln")
"""Primitives after which features have unit variance, whatever the weights before; a scale alone is none of them."""

PASSED_OVER = ("bias", "concat", "max_pool", "avg_pool")
"""Primitives that leave a normalised result normalised, or hand it on as it is."""

OPEN = 1.0
"""What is added to the bias of a gate."""

OPEN_GATE = 2 / 3
"""What a gate with that bias multiplies features by: its Hardswish."""

ATTENTION_SCALE = 0.5
"""What predicted weights of queries and keys are multiplied by."""

LONGEST_GATE = 12
"""Most nodes of a gate's branch; that of squeeze and excitation has four."""

SMALLEST_LENGTH = 1e-6
"""Stands for the length of rows that are almost zero."""


class Signals(NamedTuple):
    """What the graph implies for the parameters of each node, so that features keep their size."""

    gains: NDArray[np.float64]
    """The factor (N,) of a node's weight: 1 where the result is normalised."""
    is_normalised: NDArray[np.bool_]
    """Whether nothing but norms reads the node's result (N,), so that the size of its weight makes no difference."""
    reads_image: NDArray[np.bool_]
    """Whether the node (N,) is a convolution of the image: a stem."""
    in_gate: NDArray[np.bool_]
    """Whether the node (N,) lies on the branch that computes a gate, as in squeeze and excitation."""
    feeds_attention: NDArray[np.bool_]
    """Whether the node (N,) is the linear layer of all queries, keys and values, in this order."""
    reads_attention: NDArray[np.bool_]
    """Whether the node (N,) is the linear layer that reads the result of attention."""
    opens_gate: NDArray[np.bool_]
    """Whether the node (N,) is the bias of a gate, which then begins open (`OPEN`)."""


def has_dirac_part(parameter: Parameter) -> bool:
    """Return whether a parameter is the weight of a convolution with two kernel axes that is not transposed."""
    return parameter.role == "weight" and len(parameter.shape) == 4 and parameter.axis_order == "plain"


@lru_cache(maxsize=4096)
def dirac_part(shape: Shape, reads_image: bool = False) -> Tensor:
    """Return the Dirac part (O, I, Y, X) of a convolution's weight, on the CPU; it must not be changed.

    Each out channel reads the in channel of the same number. Where there are more out channels than in channels, the
    in channels are repeated. Where there are more in channels, such as after a concatenation, an out channel reads the
    mean of those whose numbers differ by a multiple of O. In groups, I and the numbers are those within a group.

    Args:
        reads_image: whether it is a stem, which has filters instead, because an image has too few channels.
    """
    if reads_image:
        return _stem_filters(shape)
    out, inputs, height, width = shape
    features = min(out, inputs)
    numbers_O, numbers_I = torch.arange(out, device="cpu"), torch.arange(inputs, device="cpu")
    same_OI = numbers_O[:, None] % features == numbers_I % features
    part_OIYX = torch.zeros(shape, device="cpu")
    part_OIYX[:, :, height // 2, width // 2] = same_OI / same_OI.sum(1, keepdim=True)
    return part_OIYX


def _stem_filters(shape: Shape) -> Tensor:
    """Return filters (O, I, Y, X) of unit length, in pairs of opposite sign, which ReLU turns into separate features.

    They are the lowest frequencies of the discrete cosine transform, the same for all colours.
    """
    out, inputs, height, width = shape
    frequencies = sorted(((y, x) for y in range(height) for x in range(width)), key=lambda pair: (sum(pair), pair))
    frequencies = frequencies[:STEM_FREQUENCIES]
    filters_OYX = torch.zeros(out, height, width, device="cpu")
    for channel in range(out):
        y, x = frequencies[channel // 2 % len(frequencies)]
        filter_YX = torch.outer(_cosine(y, height), _cosine(x, width))
        filters_OYX[channel] = filter_YX / filter_YX.norm() * (-1) ** channel
    return filters_OYX[:, None].expand(shape) / math.sqrt(inputs)


def _cosine(frequency: int, length: int) -> Tensor:
    return torch.cos(math.pi * frequency * (torch.arange(length, device="cpu") + 0.5) / length)


def parametrised(
    weights_MOIYX: Tensor, parameter: Parameter, is_class_layer: bool, signals: Signals, members: Sequence[int]
) -> Tensor:
    """Return the weights of several nodes with their Dirac parts, if they have one, and with their gains.

    Args:
        weights_MOIYX: what is predicted for the nodes, in their shape.
        parameter: one of the nodes' parameters, which differ in nothing but their names.
        members: the positions of the nodes in the batch.
    """
    if has_dirac_part(parameter) and not is_class_layer:
        out, inputs, height, width = weights_MOIYX.shape[1:]
        reads_image_M, in_gate_M = signals.reads_image[members], signals.in_gate[members]
        dirac_MOIYX = torch.stack([dirac_part((out, inputs, height, width), reads) for reads in reads_image_M.tolist()])
        dirac_MOIYX = _like(dirac_MOIYX, weights_MOIYX) * _column(~in_gate_M, weights_MOIYX)
        weights_MOIYX = weights_MOIYX + dirac_MOIYX
        is_standardised_M = ~signals.is_normalised[members] & ~in_gate_M
        if is_standardised_M.any():
            keeps_mean_M = reads_image_M | (inputs == 1)
            standardised_MOIYX = _standardised(weights_MOIYX, dirac_MOIYX, keeps_mean_M)
            weights_MOIYX = torch.where(
                _column(is_standardised_M, weights_MOIYX).bool(), standardised_MOIYX, weights_MOIYX
            )
    elif signals.feeds_attention[members].any() or signals.reads_attention[members].any():
        weights_MOIYX = _attending(weights_MOIYX, signals.feeds_attention[members], signals.reads_attention[members])
    gains_M = signals.gains[members]
    if (gains_M == 1).all():
        return weights_MOIYX
    return weights_MOIYX * _column(gains_M, weights_MOIYX)


def _attending(
    weights_MOI11: Tensor, feeds_attention_M: NDArray[np.bool_], reads_attention_M: NDArray[np.bool_]
) -> Tensor:
    """Return the weights of linear layers, those around attention with the Dirac parts of values and outputs."""
    _, out, inputs, *_ = weights_MOI11.shape
    scale_MO = torch.ones(len(weights_MOI11), out, device="cpu")
    part_MOI = torch.zeros(weights_MOI11.shape[:3], device="cpu")
    part_MOI[reads_attention_M] = dirac_part((out, inputs, 1, 1))[..., 0, 0]
    if feeds_attention_M.any():
        scale_MO[feeds_attention_M, : 2 * inputs] = ATTENTION_SCALE
        part_MOI[feeds_attention_M, 2 * inputs :] = torch.eye(inputs, device="cpu")
    scale_MO, part_MOI = _like(scale_MO, weights_MOI11), _like(part_MOI, weights_MOI11)
    return weights_MOI11 * scale_MO[:, :, None, None, None] + part_MOI[..., None, None]


def _standardised(weights_MOIYX: Tensor, dirac_MOIYX: Tensor, keeps_mean_M: NDArray[np.bool_]) -> Tensor:
    """Return the weights with rows of mean zero and of the length of the Dirac part's.

    Stems and depthwise convolutions keep the mean of their rows, which is all that their lowest frequency is.
    """
    means_MO111 = weights_MOIYX.mean((2, 3, 4), keepdim=True) * _column(~keeps_mean_M, weights_MOIYX)
    weights_MOIYX = weights_MOIYX - means_MO111
    return weights_MOIYX * (_row_lengths(dirac_MOIYX) / _row_lengths(weights_MOIYX).clamp(min=SMALLEST_LENGTH))


def _row_lengths(weights_MOIYX: Tensor) -> Tensor:
    """Return the length (M, O, 1, 1, 1) of each out channel's weights."""
    lengths_MO: Tensor = weights_MOIYX.flatten(2).norm(dim=2)
    return lengths_MO[..., None, None, None]


def _column(values_M: NDArray[np.generic], like: Tensor) -> Tensor:
    """Return values (M, 1, 1, 1, 1) in the precision and on the device of a tensor."""
    return _like(torch.from_numpy(values_M), like)[:, None, None, None, None]


def _like(tensor: Tensor, other: Tensor) -> Tensor:
    return upload(tensor, other.device, other.dtype)


def signals_of(batch: GraphBatch) -> Signals:
    """Return what the graphs of a batch imply for their parameters.

    The gains are such that features have unit size at the input and after norms, and that the summands which come from
    convolutions share unit size in every sum, if convolutions pass their inputs on.
    """
    return _SignalReader(batch).read()


class _SignalReader:
    """A pass over the nodes of a batch, in topological order, that follows the size of the features."""

    def __init__(self, batch: GraphBatch):
        self.nodes = batch.nodes
        self.sources: list[list[int]] = [[] for _ in batch.nodes]
        self.targets: list[list[int]] = [[] for _ in batch.nodes]
        direct = batch.distances == 1
        for source, target in zip(batch.sources[direct].tolist(), batch.targets[direct].tolist(), strict=True):
            self.sources[target].append(source)
            self.targets[source].append(target)
        self.sizes = [1.0] * len(batch.nodes)
        self.gains = np.ones(len(batch.nodes))
        self.is_normalised, self.reads_image, self.in_gate, self.opens_gate = np.zeros(
            (4, len(batch.nodes)), dtype=bool
        )
        self.feeds_attention, self.reads_attention = np.zeros((2, len(batch.nodes)), dtype=bool)

    def read(self) -> Signals:
        """Return the signals of all nodes."""
        gates = {
            node: gate for node, kind in enumerate(self.nodes) if kind.primitive == "cse" if (gate := self._gate(node))
        }
        for node, kind in enumerate(self.nodes):
            if _is_norm(kind) or not self.sources[node]:
                continue
            incoming = [self.sizes[source] for source in self.sources[node] if source not in gates.get(node, ())]
            self.sizes[node] = sum(incoming) / (1 if kind.primitive == "sum" else len(incoming))
            if node in gates:
                self.sizes[node] *= OPEN_GATE
            if kind.primitive in PRODUCTS:
                self._read_product(node)
        return Signals(
            self.gains,
            self.is_normalised,
            self.reads_image,
            self.in_gate,
            self.feeds_attention,
            self.reads_attention,
            self.opens_gate,
        )

    def _read_product(self, node: int) -> None:
        self.reads_image[node] = any(self.nodes[source].primitive == "input" for source in self.sources[node])
        readers = self._readers(node)
        self._read_projection(node, readers)
        self.is_normalised[node] = bool(readers) and all(_is_norm(self.nodes[reader]) for reader in readers)
        if self.is_normalised[node]:
            return
        summands = [len(self.sources[reader]) for reader in readers if self.nodes[reader].primitive == "sum"]
        wanted = 1.0 / max(summands, default=1)
        self.gains[node], self.sizes[node] = wanted / self.sizes[node], wanted

    def _read_projection(self, node: int, readers: Sequence[int]) -> None:
        """Note whether a product is a linear layer around attention."""
        kind = self.nodes[node]
        if kind.shape is None or kind.is_class_layer or len(kind.parameters[0].shape) != 2:
            return
        out, inputs, *_ = kind.shape
        is_read_by_attention = any(self.nodes[reader].primitive == "msa" for reader in readers)
        self.feeds_attention[node] = is_read_by_attention and out == 3 * inputs
        self.reads_attention[node] = any(self.nodes[source].primitive == "msa" for source in self.sources[node])

    def _readers(self, node: int) -> list[int]:
        """Return the nodes that read a node's result, seen through those that hand it on."""
        readers, pending = [], list(self.targets[node])
        while pending:
            target = pending.pop()
            kind = self.nodes[target]
            if kind.primitive in PASSED_OVER or _is_scale(kind):
                pending += self.targets[target]
            else:
                readers.append(target)
        return readers

    def _gate(self, product: int) -> set[int]:
        """Return the nodes of the branch that computes the gate of a product; none if it has no gate with a bias.

        The gate is computed from the very features that it multiplies, so its branch begins at the other source.
        """
        feature, *others = sorted(self.sources[product])
        if len(others) != 1 or self.nodes[others[0]].primitive != "bias":
            return set()
        branch: set[int] = set()
        pending = [others[0]]
        while pending:
            node = pending.pop()
            if node == feature or node in branch:
                continue
            if not self.sources[node] or len(branch) == LONGEST_GATE:
                return set()
            branch.add(node)
            pending += self.sources[node]
        self.opens_gate[others[0]] = True
        self.in_gate[list(branch)] = True
        return branch


def _is_scale(node: Node) -> bool:
    """Return whether a node scales features and neither normalises nor shifts them, such as LayerScale."""
    return node.primitive in NORMS and [parameter.role for parameter in node.parameters] == ["scale"]


def _is_norm(node: Node) -> bool:
    return node.primitive in NORMS and not _is_scale(node)
