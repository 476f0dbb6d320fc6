"""Changes of predicted parameters before a network is trained from them.

Predicted weights lack diversity: the rows of one layer are much alike, and gradients of alike rows keep them alike
(Knyazev, "Pretraining a Neural Network before Knowing Its Architecture", arXiv 2207.10049). Each function here returns
new tensors by the same names and changes none of its inputs.

Noise and the norms of random weights were tried too and are out again: see docs/learning.md.

Dimensions: O output channels, K weights of an output channel, N the smaller and M the larger of O and K.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

IMAGE_CHANNELS = 3
"""In channels of a stem."""


def orthogonalised(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with the rows of each layer's weight made orthogonal, which keeps the weight's norm.

    A row has the K weights of an output channel, so that a weight is a matrix (O, K). Where O > K its columns become
    orthogonal, because only K rows can be. Changed are the weights of dense layers and of convolutions over several
    channels. Depthwise ones (O, 1, height, width) stay, because their rows see different channels; so do stems, whose
    filters come in pairs of opposite sign, position embeddings, biases and the parameters of norms.
    """
    return {name: _orthogonal(tensor) if _mixes_channels(tensor) else tensor for name, tensor in tensors.items()}


def _mixes_channels(weight: Tensor) -> bool:
    if weight.ndim == 4 and weight.shape[1] == IMAGE_CHANNELS:
        return False
    return weight.ndim in (2, 4) and min(weight.shape[:2]) > 1  # a position embedding is (1, C, height, width)


def _orthogonal(weight: Tensor) -> Tensor:
    """Return Q of the QR decomposition, with the signs that make the diagonal of R positive, and the weight's norm."""
    matrix_OK = weight.reshape(len(weight), -1)
    is_wide = matrix_OK.shape[0] < matrix_OK.shape[1]
    q_MN, r_NN = torch.linalg.qr(matrix_OK.T if is_wide else matrix_OK)
    signs_N = torch.where(r_NN.diagonal() < 0, -1.0, 1.0)
    q_MN = q_MN * signs_N * (weight.norm() / math.sqrt(q_MN.shape[1]))
    return (q_MN.T if is_wide else q_MN).reshape(weight.shape)
