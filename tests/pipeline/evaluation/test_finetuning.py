from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from evaluation_examples import architecture, make_ghn

from ghn import GHN
from pipeline.errors import UserError
from pipeline.evaluation.finetuning import FinetuneResult, FinetuneRun, Target, fine_tune, target_of
from pipeline.evaluation.initialisations import INITIALISATIONS
from pipeline.images.dataset import Images
from pipeline.params import FinetuneSettings

SETTINGS = FinetuneSettings(
    datasets=["digits"],
    architectures=1,
    images_per_class=10,
    seeds=2,
    steps=4,
    batch=16,
    learning_rates=[0.01, 0.1],
    evaluate_every=3,
)
NETWORK = architecture("conv_3x3", "skip_connect", C=16, fc_layers=2, fc_dim=16)


@pytest.fixture(scope="module")
def target(images: Images) -> Target:
    return target_of(images, images_per_class=10, seeds=2, seed=0)


@pytest.fixture(scope="module")
def ghn() -> GHN:
    """Return a hypernetwork for another number of classes than the target has."""
    return make_ghn(0, num_classes=7)


def trained(run: FinetuneRun, ghn: GHN, target: Target, **changes: object) -> FinetuneResult:
    settings = SETTINGS.model_copy(update=changes)
    return fine_tune(run, NETWORK, INITIALISATIONS[run.initialisation], ghn, target, settings, seed=0)


# --- images ---


@pytest.mark.parametrize("images_per_class", [1, 10, 25])
def test_the_few_shots_are_exactly_n_images_of_each_class(images: Images, images_per_class: int) -> None:
    target = target_of(images, images_per_class, seeds=3, seed=0)
    assert len(target.shots) == 3
    for shots in target.shots:
        assert np.bincount(shots.labels).tolist() == [images_per_class] * 10
    assert not np.array_equal(target.shots[0].pixels, target.shots[1].pixels)


def test_no_image_both_trains_and_chooses_the_learning_rate(images: Images, target: Target) -> None:
    def as_set(pixels: np.ndarray) -> set[bytes]:
        return {image.tobytes() for image in pixels}

    train, held_out = as_set(images.train.pixels), as_set(target.held_out.pixels)
    assert len(held_out) == 500
    assert held_out < train
    assert not held_out & as_set(target.shots[0].pixels)
    assert all(as_set(shots.pixels) < train for shots in target.shots)
    assert np.array_equal(target.images.test.pixels, images.test.pixels)


def test_other_seeds_sample_other_images(images: Images, target: Target) -> None:
    same, other = (target_of(images, 10, seeds=2, seed=seed) for seed in (0, 1))
    assert np.array_equal(same.shots[1].pixels, target.shots[1].pixels)
    assert np.array_equal(same.held_out.pixels, target.held_out.pixels)
    assert not np.array_equal(other.shots[0].pixels, target.shots[0].pixels)


def test_more_images_a_class_than_can_be_spared_are_refused(images: Images) -> None:
    fewest = int(np.bincount(images.train.labels).min())
    target_of(images, fewest - 1, seeds=1, seed=0)
    with pytest.raises(UserError, match=f"finetune.images_per_class = {fewest}: must be less than {fewest}") as error:
        target_of(images, fewest, seeds=1, seed=0)
    assert "digits" in str(error.value)


# --- one run ---


def test_sgd_learns_digits_from_few_images(target: Target, ghn: GHN) -> None:
    run = FinetuneRun("digits", 0, "random", 0.1, 0)
    result = trained(run, ghn, target, steps=40, evaluate_every=20, batch=32)
    assert [step for step, _ in result["curve"]] == [0, 20, 40]
    assert result["curve"][0][1] < 0.3
    assert result["curve"][-1][1] > 0.5
    assert abs(result["held_out"] - result["curve"][-1][1]) < 0.15


def test_a_run_is_a_function_of_its_seeds(target: Target, ghn: GHN) -> None:
    run = FinetuneRun("digits", 0, "predicted", 0.1, 1)
    first = trained(run, ghn, target)
    torch.rand(3)
    assert trained(run, ghn, target) == first
    assert trained(replace(run, seed=0), ghn, target) != first
    assert [step for step, _ in first["curve"]] == [0, 3, 4]  # the last step is always measured


def test_predicted_parameters_are_another_start_than_random_ones(target: Target, ghn: GHN) -> None:
    predicted, random = (trained(FinetuneRun("digits", 0, name, 0.1, 1), ghn, target) for name in INITIALISATIONS)
    assert predicted["curve"] != random["curve"]


def test_a_learning_rate_that_diverges_is_measured_as_wrong(target: Target, ghn: GHN) -> None:
    network = replace(NETWORK, norm=None)
    settings = SETTINGS.model_copy(update={"steps": 20})
    run = FinetuneRun("digits", 0, "random", 1e6, 0)
    result = fine_tune(run, network, INITIALISATIONS["random"], ghn, target, settings, seed=0)
    assert result["held_out"] <= 0.2
    json.dumps(result, allow_nan=False)
