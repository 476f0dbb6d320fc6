from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_settings import small_settings
from torch import Tensor
from torch.nn import functional as F
from worker_processes import in_processes

from ghn import Architecture, GHNConfig
from ghn.deepnets1m.sampling import sample_architecture
from ghn.models.hypernetwork import Hypernetwork
from pipeline.errors import UserError
from pipeline.images.batches import Augmentation, evaluation_batches, training_batch
from pipeline.images.dataset import Images, ImageSubset
from pipeline.images.load import load_cached_images, open_images
from pipeline.images.subsets import hold_out
from pipeline.params import Params, ValidationSettings
from pipeline.training.validation import Validation, split_off_held_out

SIZE, CLASSES, BATCH = 8, 3, 8
ARCHITECTURES = [sample_architecture(0, "val", index).with_width(8, fc_dim=16) for index in range(5)]


def some_images(count: int = 60) -> Images:
    random = np.random.default_rng(0)
    labels = np.arange(count) % CLASSES
    pixels = random.integers(0, 200, (count, 3, SIZE, SIZE), dtype=np.uint8)
    part = ImageSubset(pixels + (20 * labels).astype(np.uint8)[:, None, None, None], labels)
    return Images("noise", "0", tuple("abc"), (0.4, 0.4, 0.4), (0.2, 0.2, 0.2), part, part)


IMAGES, HELD_OUT = hold_out(some_images(), 0.4)


def hypernetwork(dtype: torch.dtype = torch.float32) -> Hypernetwork:
    torch.manual_seed(1)
    return Hypernetwork(GHNConfig(CLASSES, SIZE, hidden=8, kernel=5)).to(dtype)


def validation_settings(**changes: Any) -> ValidationSettings:
    return Params.model_validate(small_settings(train={"validation": changes})).train.validation


def validation(*architectures: Architecture) -> Validation:
    return Validation(architectures or ARCHITECTURES, HELD_OUT, IMAGES, BATCH)


@torch.no_grad()
def by_hand(architecture: Architecture, dtype: torch.dtype = torch.float32) -> tuple[float, float]:
    """Return top-1 and loss of one architecture on the held-out images, whose norms see a batch at a time."""
    (parameters,) = hypernetwork(dtype).predict_parameters([architecture])
    right, loss = 0, 0.0
    for x, labels in evaluation_batches(HELD_OUT, IMAGES, BATCH):
        logits = architecture.forward(parameters, x.to(dtype)).double()
        right += (logits.argmax(1) == labels).sum().item()
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
    return right / len(HELD_OUT), loss / len(HELD_OUT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_is_measured_is_the_mean_over_architectures(dtype: torch.dtype) -> None:
    measured = validation().measure(hypernetwork(dtype), 0, 1)
    top1, losses = np.array([by_hand(architecture, dtype) for architecture in ARCHITECTURES]).T
    assert len(set(losses)) == 5
    assert measured == pytest.approx({"val_top1": top1.mean(), "val_loss": losses.mean()}, rel=1e-6)


def measure(rank: int, workers: int, several: list[Validation]) -> list[dict[str, float]]:
    return [validation.measure(hypernetwork(), rank, workers) for validation in several]


def test_the_number_of_workers_does_not_change_the_result() -> None:
    several = [validation(), validation(ARCHITECTURES[0])]  # for which some have nothing to do
    alone = measure(0, 1, several)
    assert in_processes(3, measure, several) == [alone] * 3  # to the last bit


def test_the_same_is_measured_again_and_nothing_is_changed() -> None:
    ghn = hypernetwork()
    before = {name: value.clone() for name, value in ghn.state_dict().items()}
    first = validation().measure(ghn, 0, 1)
    torch.manual_seed(99)
    assert validation().measure(ghn, 0, 1) == first
    assert all(torch.equal(value, before[name]) for name, value in ghn.state_dict().items())
    assert all(weight.grad is None and weight.requires_grad for weight in ghn.parameters())


@pytest.mark.parametrize(("architectures", "count"), [(2, 2), (99, 3)])
def test_the_first_architectures_are_validated_at_the_smallest_width(architectures: int, count: int) -> None:
    class ThreeArchitectures:
        def __len__(self) -> int:
            return 3

        def read(self, index: int) -> Architecture:
            return sample_architecture(0, "val", index)

    settings = small_settings(train={"widths": [8, 16], "head_widths": [16, 32], "validation": {"every": 1}})
    train = Params.model_validate(settings).train
    train = train.model_copy(
        update={"validation": train.validation.model_copy(update={"architectures": architectures})}
    )
    validation = Validation.of(ThreeArchitectures(), HELD_OUT, IMAGES, train)
    assert validation.architectures == ARCHITECTURES[:count]
    assert validation.batch == train.batch


class NotFinite(Architecture):
    def forward(self, *arguments) -> Tensor:
        return super().forward(*arguments) * math.nan


def test_a_network_that_is_not_finite_is_always_wrong_and_has_no_loss() -> None:
    broken = NotFinite(**vars(ARCHITECTURES[0]))
    top1, loss = by_hand(ARCHITECTURES[1])
    assert top1 > 0
    measured = validation(broken, ARCHITECTURES[1]).measure(hypernetwork(), 0, 1)
    assert measured == pytest.approx({"val_top1": top1 / 2, "val_loss": loss}, rel=1e-6)
    measured = validation(broken).measure(hypernetwork(), 0, 1)
    assert measured["val_top1"] == 0 and math.isnan(measured["val_loss"])


def test_the_images_that_are_validated_on_are_not_trained_on() -> None:
    everything = some_images()
    trained = set()
    for step in range(10):  # more than an epoch
        x, _ = training_batch(IMAGES, 0, step, 8, Augmentation())
        trained |= {image.numpy().tobytes() for image in x}
    held_out = {i.numpy().tobytes() for x, _ in evaluation_batches(HELD_OUT, IMAGES, BATCH) for i in x}
    assert len(trained) == 36 and len(held_out) == 24
    assert not trained & held_out
    whole = replace(IMAGES, train=everything.train)
    assert trained | held_out == {
        i.numpy().tobytes() for x, _ in evaluation_batches(whole.train, whole, BATCH) for i in x
    }


@pytest.mark.parametrize("every", [3, None])
def test_a_run_holds_images_out_only_if_it_validates(every: int | None, tmp_path: Path) -> None:
    settings = validation_settings(every=every, images=0.25)
    stored = load_cached_images("faces", 8, tmp_path)
    images, held_out = split_off_held_out(open_images(stored.place), settings)
    assert (len(images.train), len(held_out)) == ((120, 40) if every else (160, 0))
    assert len(images.test) == 40
    assert sorted(np.bincount(held_out.labels).tolist()) == ([20, 20] if every else [])


def test_too_few_images_to_hold_some_out_are_refused() -> None:
    single = replace(IMAGES, train=IMAGES.train.only(np.unique(IMAGES.train.labels, return_index=True)[1]))
    with pytest.raises(UserError, match=r"train\.validation\.images = .*no class of noise has two training images"):
        split_off_held_out(single, validation_settings())
