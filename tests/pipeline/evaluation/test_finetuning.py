from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from evaluation_examples import architecture, make_ghn

from ghn import GHN
from pipeline.evaluation.finetuning import Curve, FinetuneRun, RunInputs, fine_tune, held_out_accuracy, measured_steps
from pipeline.evaluation.initialisations import INITIALISATIONS
from pipeline.evaluation.targets import Target, target_of
from pipeline.images.dataset import Images
from pipeline.params import FinetuneSettings

SETTINGS = FinetuneSettings(
    datasets=["digits"],
    architectures=1,
    images_per_class=[10],
    seeds=2,
    steps=4,
    batch=16,
    learning_rates=[0.01, 0.1],
    learning_rate_limits=[0.01, 0.1],
    tuning_architectures=1,
    evaluate_every=3,
)
NETWORK = architecture("conv_3x3", "skip_connect", C=16, fc_layers=2, fc_dim=16)


@pytest.fixture(scope="module")
def target(images: Images) -> Target:
    return target_of(images, images_per_class=[1, 10], seeds=2, seed=0)


@pytest.fixture(scope="module")
def ghn() -> GHN:
    """Return a hypernetwork for another number of classes than the target has."""
    return make_ghn(0, num_classes=7)


def trained(run: FinetuneRun, ghn: GHN, target: Target, **changes: object) -> Curve:
    settings = SETTINGS.model_copy(update=changes)
    return fine_tune(RunInputs(run, NETWORK, INITIALISATIONS[run.initialisation], settings, seed=0), ghn, target)


def test_sgd_learns_digits_from_few_images(target: Target, ghn: GHN) -> None:
    run, settings = FinetuneRun("digits", 10, 0, "random", 0.1, 0), {"steps": 40, "evaluate_every": 20, "batch": 32}
    curve = trained(run, ghn, target, **settings)
    assert [step for step, _ in curve] == [0, 2, 4, 8, 20, 40]
    assert curve[0][1] < 0.3
    assert curve[-1][1] > 0.5
    inputs = RunInputs(run, NETWORK, INITIALISATIONS["random"], SETTINGS.model_copy(update=settings), seed=0)
    assert abs(held_out_accuracy(inputs, ghn, target) - curve[-1][1]) < 0.15


def test_more_images_of_each_class_train_another_network(target: Target, ghn: GHN) -> None:
    one, ten = (trained(FinetuneRun("digits", number, 0, "random", 0.1, 0), ghn, target) for number in (1, 10))
    assert one[0] == ten[0]
    assert one[1:] != ten[1:]


def test_a_run_is_a_function_of_its_seeds(target: Target, ghn: GHN) -> None:
    run = FinetuneRun("digits", 10, 0, "predicted", 0.1, 1)
    first = trained(run, ghn, target)
    torch.rand(3)
    assert trained(run, ghn, target) == first
    assert trained(replace(run, seed=0), ghn, target) != first


def test_test_accuracy_is_measured_regularly_and_at_every_budget() -> None:
    assert sorted(measured_steps(60, every=20)) == [0, 3, 6, 12, 20, 30, 40, 60]
    assert sorted(measured_steps(500, every=1000)) == [0, 25, 50, 100, 250, 500]
    assert sorted(measured_steps(4, every=3)) == [0, 1, 2, 3, 4]
    assert sorted(measured_steps(1, every=1)) == [0, 1]


@pytest.mark.parametrize("name", [name for name in INITIALISATIONS if name != "random"])
def test_every_initialisation_is_another_start_than_random(target: Target, ghn: GHN, name: str) -> None:
    starts = (trained(FinetuneRun("digits", 10, 0, start, 0.1, 1), ghn, target) for start in (name, "random"))
    first, second = starts
    assert first != second


def test_a_learning_rate_that_diverges_is_measured_as_wrong(target: Target, ghn: GHN) -> None:
    network = replace(NETWORK, norm=None)
    settings = SETTINGS.model_copy(update={"steps": 20})
    run = FinetuneRun("digits", 10, 0, "random", 1e6, 0)
    accuracy = held_out_accuracy(RunInputs(run, network, INITIALISATIONS["random"], settings, seed=0), ghn, target)
    assert accuracy <= 0.2
    json.dumps(accuracy, allow_nan=False)
