from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ghn import trace
from ghn.models.class_layer import PENALTIES, fit_class_layer


def network(features: int = 6, classes: int = 3, bias: bool = True) -> nn.Module:
    body = [nn.Conv2d(3, features, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(features, classes, bias=bias))


def examples(count: int, seed: int, classes: int = 3) -> list[tuple[Tensor, Tensor]]:
    """Return images whose class is the brightest of their channels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    images = torch.rand(count, 3, 8, 8, generator=generator)
    images[torch.arange(count), labels] += 1.0
    return list(zip(images.split(16), labels.split(16), strict=True))


def test_images_that_it_was_not_fitted_to_are_classified() -> None:
    torch.manual_seed(0)
    model = network()
    fit = fit_class_layer(model, trace(model, image_size=8), examples(60, seed=0))
    (images, labels), *_ = examples(16, seed=1)
    assert (model(images).argmax(1) == labels).double().mean() > 0.9
    assert fit.name == "4" and fit.left_out_top1 > 0.9 and fit.penalty in PENALTIES
    assert not model.training


@given(st.integers(4, 12), st.integers(0, 10_000))
def test_accuracy_on_images_left_out_is_that_of_fits_without_each(count: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = network(features=3)
    graph = trace(model, image_size=8)
    model.double()
    batches = [(images.double(), labels) for images, labels in examples(count, seed)]
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    features = model[:-1](images).detach()
    fit = fit_class_layer(model, graph, batches)
    scale = torch.linalg.matrix_norm(features - features.mean(0), ord=2) ** 2
    correct = 0
    for left_out in range(count):
        rest = torch.arange(count) != left_out
        x, y = features[rest], torch.nn.functional.one_hot(labels[rest], 3).double()
        centre, mean = features.mean(0), torch.nn.functional.one_hot(labels, 3).double().mean(0)
        # With a penalised weight and a free intercept, as a column of ones without a penalty.
        ones = torch.cat([x - centre, torch.ones(len(x), 1, dtype=torch.float64)], 1)
        penalty = torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)) * fit.penalty * scale
        weight = torch.linalg.solve(ones.T @ ones + penalty, ones.T @ (y - mean))
        logits = torch.cat([features[left_out] - centre, torch.ones(1, dtype=torch.float64)]) @ weight + mean
        correct += int(logits.argmax() == labels[left_out])
    assert fit.left_out_top1 == pytest.approx(correct / count, abs=1 / count + 1e-9)  # ties may fall either way


def test_what_cannot_be_fitted_is_said() -> None:
    model = network()
    graph = trace(model, image_size=8)
    with pytest.raises(ValueError, match="at least two images"):
        fit_class_layer(model, graph, [])
    same = torch.ones(4, 3, 8, 8)
    with pytest.raises(ValueError, match="all images have the same features"):
        fit_class_layer(model, graph, [(same, torch.tensor([0, 1, 2, 0]))])
    convolutional = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    with pytest.raises(ValueError, match=r"one linear layer that gives the logits is needed \(found: 2\)"):
        fit_class_layer(convolutional, trace(convolutional, image_size=8), [])


def test_a_layer_without_bias_keeps_none() -> None:
    torch.manual_seed(0)
    model = network(bias=False)
    before = [parameter.clone() for parameter in model[:-1].parameters()]
    fit = fit_class_layer(model, trace(model, image_size=8), examples(30, seed=0))
    assert model[-1].bias is None and fit.left_out_top1 > 0.9
    assert all(a.equal(b) for a, b in zip(before, model[:-1].parameters(), strict=True))
