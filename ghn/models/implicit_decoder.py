"""The implicit decoder: a weight as a function of the node's state and of the place in the weight.

Each entry is what a network answers when it is asked for a place: an out channel, an in channel, a kernel position. So
no shape is too large and nothing repeats. To be fast, the function is a trilinear form of three factors, one for each
kind of place, as in a canonical polyadic decomposition. Places are given as Fourier features (Tancik et al., "Fourier
Features Let Networks Learn High Frequency Functions in Low Dimensional Domains", NeurIPS 2020).

Dimensions: M nodes of a group, H hidden, D = 4H, R rank, O/I out/in channels, Y×X kernel positions, P = Y·X, Q = O·P, n
places on A axes, f frequencies, F = 2·f·A features of a place; 4 stands for the sizes of a weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ghn.models.weight_decoder import WeightDecoder
from ghn.networks.parameter_axes import Shape

FREQUENCIES = 11
"""Octaves of the Fourier features of a place, so that neighbours among 2,048 channels differ."""

SIZE_UNIT = math.log(256)
"""Logarithms of sizes are given in this unit."""


class ImplicitDecoder(WeightDecoder):
    """A decoder of weights w[o, i, y, x] = Σ_r u_r(o) v_r(i) p_r(y, x) / √R.

    Each of u, v and p is an MLP with one hidden layer of 4H, which reads the state, the place and the sizes of the
    weight.
    Class layers are matrices like any other.

    Args:
        hidden: H.
        rank: R.
    """

    def __init__(self, hidden: int, rank: int):
        super().__init__()
        self.rank = self.most_rank = rank
        self.out = PlaceFactor(hidden, 1, rank)
        self.inputs = PlaceFactor(hidden, 1, rank)
        self.positions = PlaceFactor(hidden, 2, rank)

    def decoded_shape(self, shape: Shape, is_class_layer: bool) -> Shape:
        """Return the shape itself: every shape is decoded as a whole."""
        return shape

    def forward(self, states: Sequence[Tensor], sizes: Sequence[Shape]) -> list[Tensor]:
        """Return for each group of nodes its weights (M, O, I, Y, X).

        Args:
            states: the states (M, H) of each group.
            sizes: O, I, Y and X of each group.
        """
        weights = []
        for h_MH, shape in zip(states, sizes, strict=True):
            out, inputs, height, width = shape
            u_MOR = self.out(h_MH, place_features([out], h_MH), shape)
            v_MIR = self.inputs(h_MH, place_features([inputs], h_MH), shape)
            p_MPR = self.positions(h_MH, place_features([height, width], h_MH), shape)
            left_MQR = (u_MOR.unsqueeze(2) * p_MPR.unsqueeze(1)).flatten(1, 2) / math.sqrt(self.rank)
            product_MQI = torch.bmm(left_MQR, v_MIR.transpose(1, 2))
            weights.append(product_MQI.view(-1, out, height, width, inputs).permute(0, 1, 4, 2, 3))
        return weights

    def last_layers(self) -> list[nn.Linear]:
        """Return the last layer of one factor: its share is that of the product."""
        return [self.positions.last]


class PlaceFactor(nn.Module):
    """A function from states and places to vectors of R: an MLP whose first layer adds up what it reads.

    Args:
        hidden: H.
        axes: how many axes a place has.
        rank: R.
    """

    def __init__(self, hidden: int, axes: int, rank: int):
        super().__init__()
        self.state = nn.Linear(hidden, 4 * hidden)
        self.place = nn.Linear(2 * FREQUENCIES * axes, 4 * hidden, bias=False)
        self.sizes = nn.Linear(4, 4 * hidden, bias=False)
        self.last = nn.Linear(4 * hidden, rank)

    def forward(self, h_MH: Tensor, places_nF: Tensor, shape: Shape) -> Tensor:
        """Return the vectors (M, n, R) of nodes with states (M, H), at places with features (n, F)."""
        sizes_4 = h_MH.new_tensor([math.log(size) / SIZE_UNIT for size in shape])
        of_place_nD = self.place(places_nF) + self.sizes(sizes_4)
        vectors_MnR: Tensor = self.last(F.relu(self.state(h_MH).unsqueeze(1) + of_place_nD))
        return vectors_MnR


def place_features(lengths: Sequence[int], like: Tensor) -> Tensor:
    """Return the features (n, F) of all places on a grid of these lengths, the last axis fastest.

    A place on an axis is the middle of its cell, from 0 to 1.
    """
    precision = torch.promote_types(like.dtype, torch.float32)  # bfloat16 has too few places above 256
    octaves_f = math.pi * 2 ** torch.arange(FREQUENCIES, device=like.device, dtype=precision)
    places = [(torch.arange(n, device=like.device, dtype=precision) + 0.5) / n for n in lengths]
    angles_nAf = torch.cartesian_prod(*places).view(-1, len(lengths), 1) * octaves_f
    return torch.cat([angles_nAf.sin(), angles_nAf.cos()], 2).flatten(1).to(like.dtype)
