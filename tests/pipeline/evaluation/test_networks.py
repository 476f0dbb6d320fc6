from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from evaluation_examples import ARCHITECTURES, SETTINGS

from ghn import GHN
from ghn.deepnets1m.predefined import PREDEFINED
from pipeline.errors import UserError
from pipeline.evaluation.checkpoint import require_fit
from pipeline.evaluation.networks import at_width, candidates_of, fresh_module
from pipeline.images.dataset import Images


def test_the_same_seed_gives_the_same_random_network() -> None:
    one, same, other = (fresh_module(ARCHITECTURES[0], 8, 10, seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("image_size", "factor"), [(8, 4), (64, 4), (224, 2)])
def test_wide_networks_have_several_times_the_width(image_size: int, factor: int) -> None:
    wide = at_width(ARCHITECTURES[1], SETTINGS, image_size, wide=True)
    assert (wide.C, wide.fc_dim) == (factor * SETTINGS.width, SETTINGS.head_width)
    narrow = at_width(ARCHITECTURES[1], SETTINGS, image_size)
    assert (narrow.C, narrow.fc_dim) == (SETTINGS.width, SETTINGS.head_width)


def test_predefined_networks_keep_their_width_and_have_names() -> None:
    candidates = candidates_of("predefined", list(PREDEFINED.values()), SETTINGS, 8)
    assert [candidate.name for candidate in candidates] == ["resnet50", "vit", "darts"]
    assert [candidate.network for candidate in candidates] == list(PREDEFINED.values())
    with pytest.raises(TypeError, match="ResNet has no width"):
        at_width(PREDEFINED["resnet50"], SETTINGS, 8)


def test_a_checkpoint_for_other_images_is_refused(ghn: GHN, images: Images) -> None:
    require_fit(ghn, images, 8)
    with pytest.raises(UserError, match="10 classes and image size 8"):
        require_fit(ghn, images, 16)
    with pytest.raises(UserError, match="dataset = digits has 2 classes"):
        require_fit(ghn, replace(images, classes=("a", "b")), 8)
