"""The views of an architecture agree: its graph and the trace of its module, its functional forward and its module.

`GHN_ARCHITECTURES=500 pytest tests/ghn/networks/test_views.py` compares that many of each split.
"""

from __future__ import annotations

import os

import pytest
import torch
from examples import CLASSES, images
from torch import Tensor

from ghn import Architecture, trace
from ghn.deepnets1m.sampling import SPLIT_RULES, sample_architecture

COUNT = int(os.environ.get("GHN_ARCHITECTURES", "20"))
SIZE = 16

pytestmark = pytest.mark.usefixtures("one_thread")


def assert_views_agree(architecture: Architecture) -> None:
    module = architecture.module(SIZE, CLASSES).eval()
    assert trace(module) == architecture.graph(SIZE, CLASSES)

    module, x = module.double(), images(SIZE, 2).double()
    own = dict(module.named_parameters())
    given = {name: parameter.detach().clone().requires_grad_() for name, parameter in own.items()}
    logits, functional = module(x), architecture.forward(given, x)
    # Random parameters make a few results not finite, in both views alike. The functional view computes only what small
    # maps meet of a kernel, so that its sums have another order.
    torch.testing.assert_close(logits, functional, rtol=1e-9, atol=1e-9, equal_nan=True)
    gradient, functional_gradient = gradient_of(logits, own), gradient_of(functional, given)
    if gradient.isfinite().all():
        # Modules have PyTorch's gradients of depthwise convolutions, which are sums in another order.
        assert (gradient - functional_gradient).norm() <= 1e-9 * gradient.norm()


def gradient_of(logits: Tensor, parameters: dict[str, Tensor]) -> Tensor:
    """Return the gradient of the sum of squares at all parameters, as one vector."""
    gradients = torch.autograd.grad(logits.square().sum(), list(parameters.values()))
    return torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.slow
@pytest.mark.parametrize("split", [*SPLIT_RULES, "wide"])
def test_the_views_of_what_a_split_samples_agree(split: str) -> None:
    for index in range(COUNT):
        architecture = sample_architecture(0, "test" if split == "wide" else split, index)
        assert_views_agree(architecture.with_width(32 if split == "wide" else 8, fc_dim=16))
