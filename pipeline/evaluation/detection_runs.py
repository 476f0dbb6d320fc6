"""Detectors trained from each initialisation of their backbone, in tasks on the cluster."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple, TypedDict

import numpy as np
import pandas as pd
import ray
import torch
from pandera.typing import DataFrame
from PIL import Image
from torchvision.models.detection import FasterRCNN

from ghn.models.ghn import GHN
from ghn.networks.network import Network
from pipeline.architectures.store import ArchitectureStore
from pipeline.errors import UserError
from pipeline.evaluation.cached_runs import CachedRuns, Function
from pipeline.evaluation.detection import Detections, DetectorTraining, detect, precision_of, train_detector
from pipeline.evaluation.detection_tables import (
    DetectionCurves,
    DetectionRates,
    FoundBoxes,
    ShownDetections,
    ShownScene,
)
from pipeline.evaluation.detectors import RESNETS, backbone_module, detector, initialise, pretrained_file
from pipeline.evaluation.initialisations import BASELINE
from pipeline.evaluation.learning_rates import ChosenRate, best_rate, rate_rows, search_rates
from pipeline.evaluation.networks import evaluated_network, seed_of
from pipeline.images.scene_sets import DetectionScenes
from pipeline.images.scenes import Scene, ScenesInMemory
from pipeline.params import DetectSettings, EvaluateSettings, settings_hash

SHOWN_SCENES = 6
"""How many test scenes are kept with what is found in them, for the report."""


class Competition(NamedTuple):
    """What has a learning rate of its own: an initialisation of a backbone."""

    backbone: str
    initialisation: str


@dataclass(frozen=True)
class DetectRun:
    """A detector that is trained; `seed` counts from 0."""

    backbone: str
    initialisation: str
    learning_rate: float
    seed: int

    @property
    def competition(self) -> Competition:
        """What the run's learning rate was chosen for."""
        return Competition(self.backbone, self.initialisation)


class DetectResult(TypedDict):
    """What is measured of a run, as JSON.

    `curve` has an epoch, AP and AP50 for each epoch; a diverged run has zeros. `shown` is what the trained detector
    finds in the first test scenes: boxes, labels, scores.
    """

    held_out_ap50: float
    curve: list[tuple[int, float, float]]
    shown: list[FoundBoxes]


@dataclass(frozen=True, eq=False)
class DetectSetup:
    """What all runs of a stage have in common.

    Attributes:
        settings: those of the stage.
        seed: that of the pipeline.
        backbones: a ResNet's name or an architecture, by the name of the backbone.
        scenes: what is trained on, chooses learning rates, and is measured.
    """

    settings: DetectSettings
    seed: int
    backbones: Mapping[str, str | Network]
    scenes: DetectionScenes


class Detected(NamedTuple):
    """The results of all runs: the curves of those with the chosen rates, all rates, and detections to show."""

    curves: DataFrame[DetectionCurves]
    rates: DataFrame[DetectionRates]
    results: dict[DetectRun, DetectResult]

    def shown(self, test: ScenesInMemory) -> ShownDetections:
        """Return the first test scenes with what the detectors of the first seed find in them."""
        found: dict[str, dict[str, list[FoundBoxes]]] = {}
        for run, result in self.results.items():
            if run.seed == 0 and result["shown"]:
                found.setdefault(run.backbone, {})[run.initialisation] = result["shown"]
        return ShownDetections(
            classes=list(test.classes),
            scenes=[
                ShownScene(png=as_png(scene.pixels), boxes=scene.boxes.tolist(), labels=scene.labels.tolist())
                for scene in first_scenes(test)
            ],
            found=found,
        )


def first_scenes(test: ScenesInMemory) -> list[Scene]:
    """Return the test scenes that the report shows."""
    return list(test.scenes[:SHOWN_SCENES])


def as_png(pixels: np.ndarray) -> str:
    """Return a picture uint8 (3, H, W) as a PNG in base64."""
    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def backbone_initialisations(settings: DetectSettings) -> dict[str, list[str]]:
    """Return the initialisations of each backbone; `pretrained` where this machine has torchvision's checkpoint."""
    always = ["predicted", BASELINE, "predicted_orthogonal"]
    return {
        name: [*always, "pretrained"] if name in RESNETS and pretrained_file(name) else always
        for name in settings.backbones
    }


def backbones_of(
    settings: DetectSettings, store: ArchitectureStore, evaluate: EvaluateSettings
) -> dict[str, str | Network]:
    """Return the backbones of the settings: a ResNet by its name, an architecture as it is stored.

    Raises:
        UserError: there is no such architecture.
    """
    found: dict[str, str | Network] = {}
    for name in settings.backbones:
        split, _, index = name.partition("/")
        if name in RESNETS:
            found[name] = name
        elif int(index) < len(store[split]):
            network = store.read(split, int(index))
            found[name] = evaluated_network(split, network, evaluate, settings.size)
        else:
            raise UserError(f"detect.backbones has {name}: split {split} has {len(store[split])} architectures")
    return found


def detect_all(setup: DetectSetup, initialisations: Mapping[str, Sequence[str]], ghn: GHN, folder: str) -> Detected:
    """Choose a learning rate for each initialisation of each backbone, train all seeds, and return their results.

    Runs that an interrupted stage has left in `folder` are read from there. The others are trained on the cluster, to
    which this process must be connected.

    Args:
        initialisations: those of each backbone, by its name.
        ghn: the hypernetwork.
        folder: where finished runs keep their results.
    """
    settings = setup.settings
    shared_ghn, shared_setup = ray.put(ghn.cpu()), ray.put(setup)

    def name_of_run(function: Function, run: DetectRun) -> str:
        backbone = setup.backbones[run.backbone]
        network = backbone if isinstance(backbone, str) else backbone.to_dict()
        budget = (settings.epochs, settings.batch, settings.size, settings.pyramid)
        return settings_hash([function.__name__, asdict(run), network, budget, setup.scenes.digest, setup.seed], 24)

    cached: CachedRuns[DetectRun] = CachedRuns(
        folder, name_of_run, arguments_of=lambda run: (run, shared_setup, shared_ghn), cost_of=lambda _: settings.epochs
    )

    def held_out_precisions(pairs: Sequence[tuple[Competition, float]]) -> dict[tuple[Competition, float], float]:
        runs = {pair: DetectRun(*pair[0], pair[1], seed=0) for pair in pairs}
        results = cached.results(train_and_detect, list(runs.values()), "detect: learning rates")
        return {pair: results[run]["held_out_ap50"] for pair, run in runs.items()}

    competitions = [Competition(backbone, name) for backbone, names in initialisations.items() for name in names]
    tried = search_rates(competitions, settings.learning_rates, settings.learning_rate_limits, held_out_precisions)
    chosen = {competition: best_rate(precisions) for competition, precisions in tried.items()}
    runs = [
        DetectRun(*competition, rate.learning_rate, repetition)
        for competition, rate in chosen.items()
        for repetition in range(settings.seeds)
    ]
    results = cached.results(train_and_detect, runs, "detect: all seeds")
    return Detected(curves_table(results, chosen), rates_table(tried), results)


def curves_table(
    results: Mapping[DetectRun, DetectResult], chosen: Mapping[Competition, ChosenRate]
) -> DataFrame[DetectionCurves]:
    """Return a row for each run and epoch, in this order."""
    rows = [
        {**asdict(run), "rate_is_inside": chosen[run.competition].is_inside, "epoch": epoch, "ap": ap, "ap50": ap50}
        for run, result in results.items()
        for epoch, ap, ap50 in result["curve"]
    ]
    return DetectionCurves.validate(pd.DataFrame(rows))


def rates_table(tried: Mapping[Competition, Mapping[float, float]]) -> DataFrame[DetectionRates]:
    """Return a row for each competition and learning rate that was tried, rates in increasing order."""
    return DetectionRates.validate(pd.DataFrame(rate_rows(tried)).rename(columns={"held_out_top1": "held_out_ap50"}))


# One run


def train_and_detect(run: DetectRun, setup: DetectSetup, ghn: GHN) -> DetectResult:
    """Train a detector from an initialisation of its backbone and return its average precision after each epoch.

    Every random number is a function of (seed, run.seed). So all initialisations have the same scenes in the same order
    and the same random parts. A learning rate at which training diverges has a precision of 0.
    """
    settings, key = setup.settings, seed_of(setup.seed, "detect", run.seed)
    model = begun_detector(run, setup, ghn, key)
    curve: list[tuple[int, float, float]] = []

    def measure(epoch: int, trained: FasterRCNN) -> None:
        precision = precision_of(trained, setup.scenes.test, settings.batch)
        curve.append((epoch, precision.ap, precision.ap50))

    training = DetectorTraining(run.learning_rate, settings.epochs, settings.batch, key)
    if not train_detector(model, setup.scenes.train, training, measure):
        return DetectResult(held_out_ap50=0.0, curve=[(e + 1, 0.0, 0.0) for e in range(settings.epochs)], shown=[])
    first = ScenesInMemory(setup.scenes.test.classes, first_scenes(setup.scenes.test))
    return DetectResult(
        held_out_ap50=precision_of(model, setup.scenes.held_out, settings.batch).ap50,
        curve=curve,
        shown=[as_lists(found) for found in detect(model, first, settings.batch)],
    )


def begun_detector(run: DetectRun, setup: DetectSetup, ghn: GHN, key: int) -> FasterRCNN:
    """Return the detector of a run before its training."""
    settings, backbone = setup.settings, setup.backbones[run.backbone]
    module = backbone_module(backbone, settings.size, key)
    initialise(module, run.initialisation, backbone, ghn, settings.size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key)  # of the parts that are no backbone
        scenes, classes = setup.scenes, len(setup.scenes.train.classes)
        return detector(module, settings.size, classes, settings.pyramid, scenes.mean, scenes.std)


def as_lists(found: Detections) -> FoundBoxes:
    """Return detections as JSON."""
    return found.boxes.round(1).tolist(), found.labels.tolist(), found.scores.round(4).tolist()
