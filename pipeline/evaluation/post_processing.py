"""Changes of predicted parameters before a network is trained from them.

Predicted weights lack diversity: the rows of one layer are much alike, and gradients of alike rows keep them alike
(Knyazev, "Pretraining a Neural Network before Knowing Its Architecture", arXiv 2207.10049). Each function here returns
new tensors by the same names and changes none of its inputs.

Dimensions: O output channels, K weights of an output channel, N the smaller and M the larger of O and K.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

IMAGE_CHANNELS = 3
"""In channels of a stem."""

NOISE = 0.1
"""Standard deviation of the noise as a share of that of the weights.

The source's noise is far smaller: 1e-5 to 3e-5 times the standard deviation of the correlations between a layer's rows.
On small networks that are trained for a few steps, noise of 1e-5 changes accuracies as little as another order of sums
does.
"""


def with_noise(tensors: Mapping[str, Tensor], share: float = NOISE) -> dict[str, Tensor]:
    """Return the tensors with normal noise added to each weight, a tensor of two or more dimensions.

    The noise of a weight has `share` times the standard deviation of its elements. Biases and the parameters of norms
    stay as they are. The random numbers come from PyTorch's global generator.
    """
    return {
        name: tensor + share * tensor.std() * torch.randn(tensor.shape).to(tensor)
        if tensor.ndim > 1 and tensor.numel() > 1
        else tensor
        for name, tensor in tensors.items()
    }


def orthogonalised(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with the rows of each layer's weight made orthogonal, which keeps the weight's norm.

    A row has the K weights of an output channel, so that a weight is a matrix (O, K). Where O > K its columns become
    orthogonal, because only K rows can be. Changed are the weights of dense layers and of convolutions over several
    channels. Depthwise ones (O, 1, height, width) stay, because their rows see different channels; so do stems, whose
    filters come in pairs of opposite sign, position embeddings, biases and the parameters of norms.
    """
    return {name: _orthogonal(tensor) if _mixes_channels(tensor) else tensor for name, tensor in tensors.items()}


def rescaled(tensors: Mapping[str, Tensor], references: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return each tensor scaled to the norm of the reference of its name; a tensor of zeros stays."""
    return {name: tensor * _ratio(references[name].norm(), tensor.norm()) for name, tensor in tensors.items()}


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


def _ratio(wanted: Tensor, norm: Tensor) -> Tensor:
    return torch.where(norm > 0, wanted / norm, torch.ones_like(norm))
