from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from evaluation_examples import ARCHITECTURES, architecture, make_ghn
from torch import nn

from pipeline.evaluation.finetuning import FinetuneRun, RunInputs, fine_tune
from pipeline.evaluation.initialisations import INITIALISATIONS
from pipeline.evaluation.networks import available_device, fresh_module, seed_of
from pipeline.evaluation.scores import score
from pipeline.evaluation.sgd import SgdRun, classifier, train_by_sgd
from pipeline.evaluation.targets import target_of
from pipeline.images.batches import Augmentation, evaluation_batches
from pipeline.images.dataset import Images
from pipeline.params import FinetuneSettings

RUN = SgdRun(learning_rate=0.1, steps=40, batch=32, seed=3, augmentation=Augmentation(shift=1))
NETWORK = architecture("conv_3x3", "skip_connect", C=16, fc_layers=2, fc_dim=16)


def trained(images: Images, run: SgdRun) -> tuple[nn.Module, list[float]]:
    module = fresh_module(NETWORK, images.test.side, len(images.classes), run.seed)
    return module, train_by_sgd(module, images, run)


def test_training_accuracy_rises_and_so_does_test_accuracy(images: Images) -> None:
    module, train_top1 = trained(images, replace(RUN, steps=60, augmentation=Augmentation()))
    assert len(train_top1) == 60
    assert np.mean(train_top1[-8:]) > np.mean(train_top1[:8]) + 0.3
    assert score(classifier(module), evaluation_batches(images.test, images, 64), available_device()).top1 > 0.5


def test_a_run_is_a_function_of_its_seed(images: Images) -> None:
    run = replace(RUN, steps=6)
    first, train_top1 = trained(images, run)
    torch.rand(3)
    state = torch.get_rng_state()
    again, train_top1_again = trained(images, run)
    assert torch.equal(torch.get_rng_state(), state)
    assert train_top1_again == train_top1
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    for other in (replace(run, seed=4), replace(run, augmentation=Augmentation())):
        module, _ = trained(images, other)
        assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), module.parameters(), strict=True))


def test_the_network_is_measured_before_the_first_step_and_after_each_one(images: Images) -> None:
    module = fresh_module(NETWORK, 8, 10, 0)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    steps, starts_fresh = [], []

    def measure(step: int, network: nn.Module) -> None:
        steps.append(step)
        starts_fresh.append(all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True)))
        network.eval()  # which the next step must not mind

    run = replace(RUN, steps=3)
    measured_top1 = train_by_sgd(module, images, run, measure)
    assert steps == [0, 1, 2, 3]
    assert starts_fresh == [True, False, False, False]
    other = fresh_module(NETWORK, 8, 10, 0)
    assert train_by_sgd(other, images, run) == measured_top1
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))


def test_fine_tuning_is_the_same_training(images: Images) -> None:
    """A random start, the seed of the run, its few images and no augmentation give the accuracies of stage finetune."""
    settings = FinetuneSettings(
        datasets=["digits"],
        architectures=1,
        images_per_class=[10],
        seeds=1,
        steps=5,
        batch=16,
        learning_rates=[0.1],
        learning_rate_limits=[0.1, 1],
        tuning_architectures=1,
        evaluate_every=5,
    )
    target = target_of(images, [10], seeds=1, seed=0)
    finetune_run = FinetuneRun("digits", 10, 0, "random", 0.1, 0)
    curve = fine_tune(
        RunInputs(finetune_run, NETWORK, INITIALISATIONS["random"], settings, seed=0), make_ghn(0, 7), target
    )
    key = seed_of(0, "finetune", 0, 0)
    module = fresh_module(NETWORK, 8, 10, key)
    few = replace(target.images, train=target.shots[10][0])
    train_by_sgd(module, few, SgdRun(0.1, steps=5, batch=16, seed=key, augmentation=Augmentation()))
    top1 = score(classifier(module), evaluation_batches(few.test, few, 64), available_device()).top1
    assert curve[-1] == (5, top1)


@pytest.mark.parametrize("position", [3, 4])
def test_a_batch_is_at_most_all_images(images: Images, position: int) -> None:
    few = replace(images, train=images.train.only(np.arange(12)))
    module = fresh_module(ARCHITECTURES[position], 8, 10, 0)
    accuracies = train_by_sgd(module, few, replace(RUN, steps=2))
    assert all(accuracy * 12 == pytest.approx(round(accuracy * 12)) for accuracy in accuracies)
