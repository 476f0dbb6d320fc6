from __future__ import annotations

import pytest
import torch
from torch import nn

from ghn import sample_architecture
from ghn.networks.running_statistics import batch_norms, estimate_running_statistics


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network(split: str = "test") -> nn.Module:
    torch.manual_seed(1)
    return sample_architecture(0, split, 0).with_width(8, 16).module(8, 10).eval()


def test_the_first_batch_norm_gets_the_mean_over_batches_of_the_statistics_of_its_inputs(images: torch.Tensor) -> None:
    module = network()
    first, inputs = batch_norms(module)[0], []
    first.register_forward_pre_hook(lambda layer, arguments: inputs.append(arguments[0]))
    estimate_running_statistics(module, images.split(8))
    means = torch.stack([x.mean((0, 2, 3)) for x in inputs])
    variances = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in inputs])
    assert len(inputs) == 3
    torch.testing.assert_close(first.running_mean, means.mean(0))
    torch.testing.assert_close(first.running_var, variances.mean(0))


def test_the_logits_of_an_image_no_longer_depend_on_the_other_images(images: torch.Tensor) -> None:
    module = network()
    assert not torch.allclose(module(images[:4]), module(images[:8])[:4], atol=1e-3)
    estimate_running_statistics(module, images.split(8))
    torch.testing.assert_close(module(images[:4]), module(images[:8])[:4])


def test_statistics_of_one_batch_are_those_that_the_batch_had(images: torch.Tensor) -> None:
    """Up to the difference between a variance and its unbiased estimate, which is small over many pixels."""
    layer = nn.BatchNorm2d(3, track_running_stats=False).eval()
    before = layer(images)
    estimate_running_statistics(layer, [images])
    torch.testing.assert_close(layer(images), before, rtol=2e-3, atol=2e-3)


def test_nothing_else_changes_and_there_is_no_dropout(images: torch.Tensor) -> None:
    module = network()
    parameters = {name: parameter.clone() for name, parameter in module.named_parameters()}
    state = torch.get_rng_state()
    estimate_running_statistics(module, images.split(8))
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(layer.training for layer in module.modules())
    assert all(torch.equal(parameter, parameters[name]) for name, parameter in module.named_parameters())
    estimated = [layer.running_mean.clone() for layer in batch_norms(module)]
    estimate_running_statistics(module, images.split(8))  # afresh, not on top of the former
    assert all(
        torch.equal(layer.running_mean, mean) for layer, mean in zip(batch_norms(module), estimated, strict=True)
    )


def test_a_network_without_batch_norms_stays_as_it_is(images: torch.Tensor) -> None:
    module = network("bn_free")
    before = module(images)
    estimate_running_statistics(module, images.split(8))
    assert not batch_norms(module)
    assert torch.equal(module(images), before)
