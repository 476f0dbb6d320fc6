"""The Dirac parametrisation: a hypernetwork predicts how convolutions differ from ones that pass features on.

A convolution's weight is D + P, where P is predicted and D, the Dirac part, has a one at the kernel's centre between
channels of the same number. So a network of any depth passes the features of its stem on before anything is learned,
and these keep their meaning from layer to layer and from network to network. Source: Zagoruyko and Komodakis,
"DiracNets: Training Very Deep Neural Networks Without Skip-Connections", 2017, eq. 4, for the weights of one network.

Where no norm follows, features would grow with each sum of the network, and with the weights as these are learned.
There the rows of D + P are standardised: they get mean zero, so that they do not answer to what all features have in
common, and the norm of D's (Brock et al., "Characterizing signal propagation to close the performance gap in
unnormalized ResNets", ICLR 2021, eq. 2). A gain makes up for the growth that the graph implies (`signal_path`).

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

from ghn.networks.graph_batch import GraphBatch
from ghn.networks.operations import Parameter
from ghn.networks.parameter_axes import Shape

IMAGE_CHANNELS = 3
"""In channels of a stem, whose Dirac part is a bank of filters instead, because an image has too few features."""

STEM_FREQUENCIES = 8
"""Number of different filters in a stem's bank; further channels repeat them."""

CONVOLUTIONS = ("conv", "sep_conv", "dil_conv")
"""Primitives whose weights are convolutions or linear layers."""

OPEN = 1.0
"""What is added to the bias of a gate."""

OPEN_GATE = 2 / 3
"""What a gate with that bias multiplies features by: its Hardswish."""

SMALLEST_NORM = 1e-6
"""Stands for the norm of rows that are almost zero."""

NORMS = ("bn", "ln")
"""Primitives after which features have unit variance, whatever the weights before."""


def has_dirac_part(parameter: Parameter) -> bool:
    """Return whether a parameter is the weight of a convolution with two kernel axes."""
    return parameter.role == "weight" and len(parameter.shape) == 4 and parameter.axis_order in ("plain", "transposed")


@lru_cache(maxsize=4096)
def dirac_part(shape: Shape) -> Tensor:
    """Return the Dirac part (O, I, Y, X) of a convolution's weight.

    Each out channel reads the in channel of the same number. Where there are more out channels than in channels, the
    in channels are repeated. Where there are more in channels, such as after a concatenation, an out channel reads the
    mean of those whose numbers differ by a multiple of O.
    """
    out, inputs, height, width = shape
    if inputs == IMAGE_CHANNELS:
        return _stem_filters(shape)
    features = min(out, inputs)
    same_OI = torch.arange(out)[:, None] % features == torch.arange(inputs) % features
    part_OIYX = torch.zeros(shape)
    part_OIYX[:, :, height // 2, width // 2] = same_OI / same_OI.sum(1, keepdim=True)
    return part_OIYX


def _stem_filters(shape: Shape) -> Tensor:
    """Return filters (O, I, Y, X) of unit norm, in pairs of opposite sign, which ReLU turns into separate features.

    They are the lowest frequencies of the discrete cosine transform, the same for all colours.
    """
    out, inputs, height, width = shape
    frequencies = sorted(((y, x) for y in range(height) for x in range(width)), key=lambda pair: (sum(pair), pair))
    frequencies = frequencies[:STEM_FREQUENCIES]
    filters_OYX = torch.zeros(out, height, width)
    for channel in range(out):
        y, x = frequencies[channel // 2 % len(frequencies)]
        filter_YX = torch.outer(_cosine(y, height), _cosine(x, width))
        filters_OYX[channel] = filter_YX / filter_YX.norm() * (-1) ** channel
    return filters_OYX[:, None].expand(shape) / math.sqrt(inputs)


def _cosine(frequency: int, length: int) -> Tensor:
    return torch.cos(math.pi * frequency * (torch.arange(length) + 0.5) / length)


class SignalPath(NamedTuple):
    """What the graph implies for the parameters of each node, so that features keep their size."""

    gains: NDArray[np.float64]
    """The factor (N,) of each node's weight: 1 where a norm follows."""
    has_norm: NDArray[np.bool_]
    """Whether a norm follows (N,), so that the size of the node's weight makes no difference."""
    opens_gate: NDArray[np.bool_]
    """Whether a node (N,) is the bias of a gate, as in squeeze and excitation, which then begins open (`OPEN`)."""


def with_dirac_part(
    weights_MOIYX: Tensor, parameter: Parameter, is_class_layer: bool, path: SignalPath, members: Sequence[int]
) -> Tensor:
    """Return the weights of several nodes, with their Dirac part and their gains.

    Args:
        weights_MOIYX: what is predicted for the nodes, in their shape.
        parameter: one of the nodes' parameters, which differ in nothing but their names.
        members: the positions of the nodes in the batch.
    """
    if has_dirac_part(parameter) and not is_class_layer:
        out, inputs, height, width = weights_MOIYX.shape[1:]
        dirac_OIYX = dirac_part((out, inputs, height, width)).to(weights_MOIYX)
        weights_MOIYX = weights_MOIYX + dirac_OIYX
        weights_MOIYX = _standardised(weights_MOIYX, dirac_OIYX, path.has_norm[members])
    gains_M = path.gains[members]
    if (gains_M == 1).all():
        return weights_MOIYX
    return weights_MOIYX * torch.from_numpy(gains_M).to(weights_MOIYX)[:, None, None, None, None]


def _standardised(weights_MOIYX: Tensor, dirac_OIYX: Tensor, has_norm_M: NDArray[np.bool_]) -> Tensor:
    """Return the weights with the rows of those without norm standardised: mean 0 and the norm of the Dirac part's.

    Depthwise convolutions keep their mean, because a feature that is alone in its row would lose its low frequencies.
    """
    if has_norm_M.all():
        return weights_MOIYX
    has_norm_M1 = torch.from_numpy(has_norm_M)[:, None].to(weights_MOIYX.device)
    if weights_MOIYX.shape[2] > 1:
        means_MO = weights_MOIYX.mean((2, 3, 4)).masked_fill(has_norm_M1, 0.0)
        weights_MOIYX = weights_MOIYX - means_MO[..., None, None, None]
    factors_MO = _row_norms(dirac_OIYX[None]) / _row_norms(weights_MOIYX).clamp(min=SMALLEST_NORM)
    return weights_MOIYX * factors_MO.masked_fill(has_norm_M1, 1.0)[..., None, None, None]


def _row_norms(weights_MOIYX: Tensor) -> Tensor:
    """Return the norm (M, O) of each out channel's weights."""
    norms_MO: Tensor = weights_MOIYX.flatten(2).norm(dim=2)
    return norms_MO


def signal_path(batch: GraphBatch) -> SignalPath:
    """Return what the graphs of a batch imply for their parameters.

    The gains are such that features have unit size at the input, after norms, and in every sum, if convolutions pass
    their inputs on.
    """
    sources, targets = _neighbours(batch)
    primitives = [node.primitive for node in batch.nodes]
    sizes, gains = [1.0] * batch.num_nodes, np.ones(batch.num_nodes)
    has_norm, opens_gate = np.zeros(batch.num_nodes, dtype=bool), np.zeros(batch.num_nodes, dtype=bool)
    for node, primitive in enumerate(primitives):  # in topological order
        incoming = [sizes[source] for source in sources[node] if primitive != "cse" or primitives[source] != "bias"]
        if primitive in NORMS or not incoming:
            continue
        sizes[node] = sum(incoming) / (1 if primitive == "sum" else len(incoming))
        if primitive == "cse":
            sizes[node] *= OPEN_GATE
        opens_gate[node] = primitive == "bias" and any(primitives[target] == "cse" for target in targets[node])
        if primitive not in CONVOLUTIONS:
            continue
        following = _after_bias(node, targets, primitives)
        has_norm[node] = any(primitives[target] in NORMS for target in following)
        if not has_norm[node]:
            wanted = 1.0 / max((len(sources[target]) for target in following if primitives[target] == "sum"), default=1)
            gains[node], sizes[node] = wanted / sizes[node], wanted
    return SignalPath(gains, has_norm, opens_gate)


def _after_bias(node: int, targets: Sequence[Sequence[int]], primitives: Sequence[str]) -> Sequence[int]:
    """Return the nodes that read a node's result; the bias that is added to it is passed over."""
    following = targets[node]
    while len(following) == 1 and primitives[following[0]] == "bias":
        following = targets[following[0]]
    return following


def _neighbours(batch: GraphBatch) -> tuple[list[list[int]], list[list[int]]]:
    """Return the direct sources and the direct targets of each node."""
    sources: list[list[int]] = [[] for _ in batch.nodes]
    targets: list[list[int]] = [[] for _ in batch.nodes]
    direct = batch.distances == 1
    for source, target in zip(batch.sources[direct].tolist(), batch.targets[direct].tolist(), strict=True):
        sources[target].append(source)
        targets[source].append(target)
    return sources, targets
