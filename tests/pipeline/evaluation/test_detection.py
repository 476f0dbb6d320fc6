"""Detectors on predicted backbones: feature maps, training, average precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from evaluation_examples import ARCHITECTURES
from torch import nn
from torchvision.models import ResNet18_Weights

from ghn import GHN, GHNConfig
from pipeline.evaluation.average_precision import Detections, average_precision
from pipeline.evaluation.detection import DetectorTraining, detect, precision_of, train_detector
from pipeline.evaluation.detection_tables import DetectionCurves, summarise_detection
from pipeline.evaluation.detectors import (
    ArchitectureMaps,
    Backbone,
    backbone_module,
    detector,
    initialise,
    pretrained_file,
)
from pipeline.images.dataset import ImageSubset
from pipeline.images.scenes import Scene, ScenesInMemory, compose_scenes

GREY = (0.3, 0.3, 0.3), (0.25, 0.25, 0.25)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def ghn() -> GHN:
    torch.manual_seed(0)
    return GHN(GHNConfig(10, 14, hidden=16, kernel=7, dirac=True)).eval()


def scene(*objects: tuple[tuple[float, ...], int]) -> Scene:
    boxes, labels = zip(*objects, strict=True)
    return Scene(np.zeros((3, 40, 40), np.uint8), np.array(boxes, np.float32), np.array(labels))


def found(*objects: tuple[tuple[float, ...], int, float]) -> Detections:
    boxes, labels, scores = zip(*objects, strict=True) if objects else ((), (), ())
    return Detections(np.array(boxes, float).reshape(-1, 4), np.array(labels, int), np.array(scores, float))


# Average precision


BOX, OTHER = (0.0, 0.0, 10.0, 10.0), (20.0, 20.0, 36.0, 36.0)


def test_detections_that_are_the_objects_have_a_precision_of_one() -> None:
    scenes = [scene((BOX, 0), (OTHER, 1)), scene((OTHER, 0))]
    detections = [found((BOX, 0, 0.9), (OTHER, 1, 0.8)), found((OTHER, 0, 0.3))]
    assert average_precision(scenes, detections, 2) == (1.0, 1.0)


@pytest.mark.parametrize("wrong", [(), ((BOX, 1, 0.9),), ((OTHER, 0, 0.9),)], ids=["none", "class", "place"])
def test_no_object_found_is_a_precision_of_zero(wrong: tuple) -> None:
    assert average_precision([scene((BOX, 0))], [found(*wrong)], 2) == (0.0, 0.0)


def test_a_shifted_box_counts_at_the_overlaps_that_it_reaches() -> None:
    shifted = (0.0, 0.0, 10.0, 7.2)  # overlap 0.72: 5 of the 10 thresholds
    ap, ap50 = average_precision([scene((BOX, 0))], [found((shifted, 0, 0.9))], 1)
    assert (ap, ap50) == pytest.approx((0.5, 1.0))


def test_a_wrong_detection_with_a_higher_score_halves_the_precision() -> None:
    detections = found((OTHER, 0, 0.9), (BOX, 0, 0.5))
    assert average_precision([scene((BOX, 0))], [detections], 1).ap50 == pytest.approx(0.5)


def test_scenes_and_detections_must_be_as_many_and_have_an_object() -> None:
    with pytest.raises(ValueError, match="must be 1"):
        average_precision([scene((BOX, 0))], [], 1)
    empty = Scene(np.zeros((3, 4, 4), np.uint8), np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    with pytest.raises(ValueError, match="no scene has an object"):
        average_precision([empty], [found()], 1)


# Feature maps


def test_a_resnet_gives_maps_of_four_strides_in_a_pyramid_and_the_coarsest_without() -> None:
    model = detector(backbone_module("resnet18", 64, 0), 64, 3, True, *GREY)
    assert model.backbone.strides == (4, 8, 16, 32)
    assert {tensor.shape[1] for tensor in model.backbone(torch.zeros(2, 3, 64, 64)).values()} == {64}
    model = detector(backbone_module("resnet18", 64, 0), 64, 3, False, *GREY)
    assert model.backbone.strides == (32,)
    assert [tensor.shape for tensor in model.backbone(torch.zeros(2, 3, 64, 64)).values()] == [(2, 512, 2, 2)]


@pytest.mark.parametrize("index", range(len(ARCHITECTURES)))
def test_an_architecture_gives_the_last_map_of_each_width(index: int) -> None:
    module = backbone_module(ARCHITECTURES[index], 64, 0)
    maps = module.feature_maps(torch.randn(2, 3, 64, 64))
    widths = list(maps)
    assert widths == sorted(widths, reverse=True) and all(maps[width].shape[-1] == width for width in widths)
    backbone = Backbone(ArchitectureMaps(module), 64, True)
    assert min(backbone.strides) >= 4 or backbone.strides == (64 // widths[-1],)
    assert set(backbone(torch.randn(2, 3, 64, 64))) >= set(backbone.names)


def test_the_last_map_of_an_architecture_is_what_it_classifies_from() -> None:
    """Its mean over pixels, through the head, is the logits, where the head is one dense layer after a global pool."""
    module = backbone_module(ARCHITECTURES[0], 32, 0).eval()
    images = torch.randn(2, 3, 32, 32)
    *_, last = module.feature_maps(images).values()
    (head,) = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    torch.testing.assert_close(head(last.mean((2, 3))), module(images), rtol=1e-4, atol=1e-4)


# Initialisations


@pytest.mark.parametrize("backbone", ["resnet18", ARCHITECTURES[1]], ids=["resnet18", "architecture"])
def test_predicted_backbones_have_what_the_hypernetwork_predicts(ghn: GHN, backbone: object) -> None:
    modules = {}
    for name in ("random", "predicted", "predicted_orthogonal"):
        modules[name] = backbone_module(backbone, 64, seed=3)
        initialise(modules[name], name, backbone, ghn, 64)
    with torch.no_grad():
        network = modules["random"] if isinstance(backbone, str) else backbone
        (expected,) = ghn.predict_parameters([network], 64)
    predicted = dict(modules["predicted"].named_parameters())
    same = [name for name, tensor in expected.items() if torch.equal(predicted[name], tensor)]
    assert len(same) > 0.9 * len(predicted)
    first = next(iter(predicted))
    assert not torch.equal(predicted[first], dict(modules["random"].named_parameters())[first])
    orthogonal = dict(modules["predicted_orthogonal"].named_parameters())
    assert any(not torch.equal(orthogonal[name], predicted[name]) for name in predicted)


def test_pretrained_backbones_need_a_file_of_this_machine(
    ghn: GHN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert pretrained_file("resnet18") is None
    module = backbone_module("resnet18", 64, 0)
    with pytest.raises(ValueError, match="no file of it"):
        initialise(module, "pretrained", "resnet18", ghn, 64)
    path = tmp_path / "hub" / "checkpoints" / Path(ResNet18_Weights.DEFAULT.url).name
    path.parent.mkdir(parents=True)
    other = backbone_module("resnet18", 64, 1).state_dict()
    torch.save(other, path)
    initialise(module, "pretrained", "resnet18", ghn, 64)
    assert all(torch.equal(tensor, other[name]) for name, tensor in module.state_dict().items())


def test_an_unknown_initialisation_is_refused(ghn: GHN) -> None:
    with pytest.raises(ValueError, match="initialisation he"):
        initialise(backbone_module("resnet18", 64, 0), "he", "resnet18", ghn, 64)


# Training


@pytest.fixture(scope="module")
def squares() -> ScenesInMemory:
    pixels = np.zeros((2, 3, 20, 20), np.uint8)
    pixels[0, :, 2:18, 2:18] = 255
    pixels[1, :, 8:12, 1:19] = 255
    return compose_scenes(ImageSubset(pixels, np.array([0, 1])), ("square", "bar"), 24, 64, seed=0)


def small_detector(seed: int = 0) -> nn.Module:
    module = backbone_module("resnet18", 64, seed)
    torch.manual_seed(seed)
    return detector(module, 64, 2, True, *GREY)


@pytest.mark.slow
def test_training_finds_squares_and_bars(squares: ScenesInMemory) -> None:
    model, epochs = small_detector(), []
    training = DetectorTraining(0.05, epochs=12, batch=4, seed=0)
    assert train_detector(model, squares, training, lambda epoch, _: epochs.append(epoch))
    assert epochs == list(range(1, 13))
    assert precision_of(model, squares, 8).ap50 > 0.5
    boxes, labels, scores = detect(model, squares, 8)[0]
    assert len(boxes) == len(labels) == len(scores) > 0
    assert set(labels) <= {0, 1}


def test_training_is_a_function_of_the_seed_and_of_the_start(squares: ScenesInMemory) -> None:
    few = ScenesInMemory(squares.classes, squares.scenes[:4])
    weights = []
    for seed in (0, 0, 1):
        model = small_detector()
        train_detector(model, few, DetectorTraining(0.01, 1, 2, seed))
        weights.append(next(model.roi_heads.box_predictor.parameters()).detach().clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_run_that_diverges_ends_and_says_so(squares: ScenesInMemory) -> None:
    assert not train_detector(small_detector(), squares, DetectorTraining(1e12, 3, 4, 0))


# The summary


def test_the_summary_compares_a_third_of_the_epochs_in_pairs_of_seeds() -> None:
    rows = [
        {
            **{"backbone": "resnet18", "initialisation": name, "learning_rate": 0.1, "rate_is_inside": True},
            **{"seed": seed, "epoch": epoch, "ap": 0.01 * epoch, "ap50": gain + 0.05 * epoch + 0.02 * seed},
        }
        for name, gain in (("predicted", 0.1), ("random", 0.0))
        for seed in range(3)
        for epoch in range(1, 10)
    ]
    summary = summarise_detection(DetectionCurves.validate(pd.DataFrame(rows))).set_index("initialisation")
    predicted = summary.loc["predicted"]
    assert (predicted["early_epoch"], predicted["epochs"], predicted["seeds"]) == (3, 9, 3)
    assert predicted["early_ap50"] == pytest.approx(0.1 + 0.15 + 0.02)
    assert predicted["early_difference"] == pytest.approx(0.1)
    assert predicted["early_difference_error"] == pytest.approx(0, abs=1e-9)
    assert predicted["ap50"] == pytest.approx(0.1 + 0.45 + 0.02)
    assert pd.isna(summary.loc["random", "early_difference"])
