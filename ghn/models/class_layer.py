"""The class layer of a network, fitted in closed form to the features of a few images.

Dimensions: N images, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ghn.networks.graph import Graph

PENALTIES = tuple(10.0**power for power in range(-8, 1))
"""Ridge penalties that are tried, in units of the largest eigenvalue of the features' scatter matrix."""


@dataclass(frozen=True)
class ClassLayerFit:
    """A fitted class layer.

    Attributes:
        name: of the layer.
        penalty: that was chosen, in units of the largest eigenvalue.
        left_out_top1: share of the images that the layer classifies correctly when it is fitted to all others, 0 to 1.
    """

    name: str
    penalty: float
    left_out_top1: float


@torch.no_grad()
def fit_class_layer(model: nn.Module, graph: Graph, batches: Iterable[tuple[Tensor, Tensor]]) -> ClassLayerFit:
    """Replace the weights of a network's class layer by those of a ridge regression on the classes of images.

    The targets are 1 for the class of an image and 0 for the others. The penalty is the one with the smallest squared
    error on images that are left out one at a time, which has a closed form (Hastie, Tibshirani, Friedman, "The
    Elements of Statistical Learning", equation 7.64). The network is in evaluation mode afterwards.

    Args:
        graph: the traced graph of the network, which names the layer.
        batches: images (B, C, S, S) with labels (B,).

    Raises:
        ValueError: the network has no linear class layer or several, there are fewer than two images, or their features
            are all the same or not finite.
    """
    name = _find_class_layer(model, graph)
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    features_ND, labels_N = _features(model, layer, batches)
    features_ND = features_ND.double()
    if len(labels_N) < 2 or not features_ND.isfinite().all():
        raise ValueError("the class layer cannot be fitted: at least two images with finite features are needed")
    has_bias = layer.bias is not None
    mean_D = has_bias * features_ND.mean(0)
    left_NR, scales_R, right_RD = torch.linalg.svd(features_ND - mean_D, full_matrices=False)
    if scales_R[0] <= 1e-9 * features_ND.norm():
        raise ValueError("the class layer cannot be fitted: all images have the same features")
    targets_NK = nn.functional.one_hot(labels_N, layer.out_features).double()
    mean_K = has_bias * targets_NK.mean(0)
    projected_RK = left_NR.T @ (targets_NK - mean_K)
    best: tuple[float, float, Tensor, Tensor] | None = None
    for penalty in PENALTIES:
        shrinkage_R = scales_R**2 / (scales_R**2 + penalty * scales_R[0] ** 2)
        fitted_NK = mean_K + left_NR @ (shrinkage_R[:, None] * projected_RK)
        leverage_N = (left_NR**2 * shrinkage_R).sum(1) + has_bias / len(labels_N)
        residuals_NK = (targets_NK - fitted_NK) / (1 - leverage_N).clamp_min(1e-9)[:, None]
        error = float(residuals_NK.square().sum())
        if best is None or error < best[0]:
            best = (error, penalty, shrinkage_R / scales_R.clamp_min(1e-300), targets_NK - residuals_NK)
    assert best is not None
    _, penalty, inverse_R, left_out_NK = best
    weight_KD = (right_RD.T @ (inverse_R[:, None] * projected_RK)).T
    layer.weight.copy_(weight_KD)
    if has_bias:
        layer.bias.copy_(mean_K - weight_KD @ mean_D)
    return ClassLayerFit(name, penalty, float((left_out_NK.argmax(1) == labels_N).double().mean()))


def _find_class_layer(model: nn.Module, graph: Graph) -> str:
    """Return the name of the linear layer that gives a network's logits.

    Raises:
        ValueError: there is none, or there are several.
    """
    weights = [node.parameters[0].name for node in graph.nodes if node.is_class_layer and node.parameters]
    names = dict.fromkeys(weight.rpartition(".")[0] for weight in weights)
    linear = [name for name in names if isinstance(model.get_submodule(name), nn.Linear)]
    if len(linear) != 1:
        found = ", ".join(linear or names) or "none"
        raise ValueError(f"a network with one linear layer that gives the logits is needed (found: {found})")
    return linear[0]


def _features(model: nn.Module, layer: nn.Linear, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return what a layer reads (N, D) when a network sees images in evaluation mode, and their labels (N,)."""
    seen: list[Tensor] = []
    labels: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().flatten(1)))
    try:
        model.eval()
        for images, labels_B in batches:
            model(images)
            labels.append(labels_B)
    finally:
        hook.remove()
    if not seen:
        return torch.empty(0, layer.in_features), torch.empty(0, dtype=torch.long)
    return torch.cat(seen), torch.cat(labels)
