"""The weights that GHN-3 begins with: predictions are small and depend on all embeddings alike.

Source: Knyazev, Hwang, Lacoste-Julien, "Can We Scale Transformers to Predict Parameters of Diverse ImageNet Models?",
ICML 2023, section 4.

Dimensions: H hidden.
"""

from __future__ import annotations

import torch
from torch import nn

from ghn.models.parameter_decoder import ParameterDecoder

SHARE = 1 / 5
"""The size of the last layers of the decoders at the start, as a share of the usual one."""


@torch.no_grad()
def start_small(encoder: nn.Module, gnn: nn.Module, decoder: ParameterDecoder) -> None:
    """Sample all embeddings from a truncated normal distribution of variance 1/H; shrink the decoders' last layers."""
    hidden = encoder.get_submodule("primitives").get_parameter("weight").shape[1]
    for part in (*encoder.modules(), *gnn.modules()):
        if isinstance(part, nn.Embedding):
            nn.init.trunc_normal_(part.weight, std=hidden**-0.5)
    for layer in decoder.last_layers():
        layer.weight.mul_(SHARE)
        layer.bias.zero_()
