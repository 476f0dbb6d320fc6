"""What a training run depends on, and what the driver sends to its workers."""

from __future__ import annotations

from pipeline.architectures.store import Manifest
from pipeline.params import (
    TEXT_DATASETS,
    HypernetworkSettings,
    ImageSettings,
    Section,
    TrainSettings,
    WorkerSettings,
    settings_hash,
)


class RunSettings(Section):
    """The settings that decide what is learned. How it is run (`workers`) is not among them."""

    seed: int
    dataset: str
    meta_batch: int
    images: ImageSettings
    hypernetwork: HypernetworkSettings
    train: TrainSettings

    @property
    def is_text(self) -> bool:
        """Whether the target networks are language models."""
        return self.dataset in TEXT_DATASETS


class WorkerJob(Section):
    """The task of a worker, in plain values: it may run on another node, which shares no files with the driver.

    Attributes:
        settings: what is learned.
        workers: how it is run.
        storage: the address of the storage, as a worker reaches it.
        manifest: the content of the manifest of architectures.
        images: the address of the decoded images.
        metrics_buffer: the name of the actor that takes what rank 0 logs.
    """

    settings: RunSettings
    workers: WorkerSettings
    storage: str
    manifest: Manifest
    images: str
    metrics_buffer: str


def run_name(settings: RunSettings, manifest: Manifest, images_hash: str) -> str:
    """Return the name of a run: hexadecimal digits that change whenever something changes what is learned.

    Args:
        settings: what is learned.
        manifest: the content of the manifest of architectures, of which training reads the splits train and val.
        images_hash: the settings hash of the decoded images.
    """
    splits = [manifest["splits"][name] for name in ("train", "val")]
    return settings_hash([settings.model_dump(), splits, images_hash])
