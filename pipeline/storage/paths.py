"""Every address below the storage, and the folders of this node that belong to it.

    <storage>/architectures/<split>/<settings hash>/        shards of a sampled split, and their records
    <storage>/architectures/<split>/<settings hash>-drafts/ first samples of a split that is not finished
    <storage>/architectures/<split>/imported-<digest>/      shards of an imported split, manifest.json, disagreeing.csv
    <storage>/paper_results/<digest>.json                   published results of single architectures
    <storage>/images/<set>-<size>-<settings hash>/          a decoded data set
    <storage>/images/downloads/                             files of data sets, as published
    <storage>/training/<settings hash>/                     checkpoints of a training run
    <storage>/sgd/tasks/<settings hash>/                    finished tasks of stage sgd
    <storage>/sgd/sources/<settings hash>/                  trained networks of split train, and their records
    <storage>/evaluations/<settings hash>/                  finished tasks of stage evaluate
    <storage>/copies/<settings hash>/                       finished tasks of stage copies
    <storage>/similarities/<settings hash>/                 finished comparisons of architectures, of stage evaluate
    <storage>/finetuning/<settings hash>/                   finished tasks of stage finetune
    <storage>/adaptation/<settings hash>/                   finished tasks of stage adapt
    <storage>/detection/<settings hash>/                    finished tasks of stage detect
    <storage>/conditioning/<settings hash>/                 finished tasks of stage condition
    <storage>/embeddings/<settings hash>/                   embeddings of stored architectures, and their records
    <storage>/studies/<settings hash>/                      finished tasks of a variant of stage study
    <storage>/doctor-<name>/                                a file of each node, while `ghn doctor` runs

An *address* is relative to the storage, as in manifests and params.yaml. A *place* is what `storage_url` makes of it: a
local path, or an address in a bucket.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from uuid import uuid4

from pipeline.workspace import from_workspace

TaskCache = Literal[
    "sgd/tasks",
    "evaluations",
    "copies",
    "similarities",
    "finetuning",
    "adaptation",
    "conditioning",
    "detection",
    "studies",
]
"""The stages' folders of finished tasks."""


def is_in_bucket(place: str | Path) -> bool:
    """Return whether a place is in a bucket. All others are local paths, whatever characters they have."""
    return str(place).startswith("s3://")


def storage_url(storage: str, address: str) -> str:
    """Return the place of an address below a storage.

    A relative storage is meant from the workspace, which a DVC experiment in a temporary copy shares.
    """
    return f"{storage_root(storage)}/{address}"


def storage_root(storage: str) -> str:
    """Return the place of a storage itself."""
    return storage.rstrip("/") if is_in_bucket(storage) else str(from_workspace(storage))


def probe_file(storage: str) -> str:
    """Return the place of a new file that tries whether a storage can be written."""
    return storage_url(storage, f"check-{uuid4().hex}")


def doctor_folder(storage: str, name: str) -> str:
    """Return the place of a folder in which nodes try whether they see what the others write."""
    return storage_url(storage, f"doctor-{name}")


# Architectures


def sampled_split_address(split: str, settings_hash: str) -> str:
    """Return the address of the folder of a sampled split."""
    return f"architectures/{split}/{settings_hash}"


def imported_split_address(split: str, content_digest: str) -> str:
    """Return the address of the folder of an imported split."""
    return f"architectures/{split}/imported-{content_digest}"


def manifest_address(folder: str) -> str:
    """Return the address of the manifest in the folder of an imported split."""
    return f"{folder}/manifest.json"


def disagreements_file(folder: str) -> str:
    """Return the place of the table of rows of an import that contradict themselves, in the folder of the split."""
    return f"{folder}/disagreeing.csv"


def drafts_folder(folder: str) -> str:
    """Return the folder of the first samples that belongs to the folder of a sampled split."""
    return f"{folder}-drafts"


def paper_results_address(content_digest: str) -> str:
    """Return the address of a file of published results."""
    return f"paper_results/{content_digest}.json"


# Images


def image_cache(storage: str) -> Path | str:
    """Return the place of all decoded data sets: a folder of a local storage, or an address in a bucket."""
    place = storage_url(storage, "images")
    return place if is_in_bucket(storage) else Path(place)


def image_set_folder(cache: str, name: str, image_size: int, settings_hash: str) -> str:
    """Return the folder of one decoded data set below an image cache."""
    return f"{cache}/{name}-{image_size}-{settings_hash}"


def node_image_cache() -> Path:
    """Return the folder on this node's disk for image shards that were copied from a bucket."""
    return Path.home() / ".cache" / "ghn" / "images"


def downloads_folder(cache: Path) -> Path:
    """Return the folder below an image cache for the files of data sets as they were published."""
    return cache / "downloads"


# Runs of the stages


def training_folder(storage: str, settings_hash: str) -> str:
    """Return the place of the checkpoints of a training run."""
    return storage_url(storage, f"training/{settings_hash}")


def task_folder(storage: str, stage: TaskCache, settings_hash: str) -> str:
    """Return the place of the finished tasks of a stage."""
    return storage_url(storage, f"{stage}/{settings_hash}")


def source_file(settings_hash: str, name: str) -> str:
    """Return the address of the tensors of a network that stage sgd has trained."""
    return f"sgd/sources/{settings_hash}/{name}.safetensors"


def embeddings_folder(storage: str, settings_hash: str) -> str:
    """Return the place of the embeddings of stored architectures."""
    return storage_url(storage, f"embeddings/{settings_hash}")


# Records


def records_folder(folder: str) -> str:
    """Return the folder of the records of the finished outputs of a folder (see `pipeline.storage.records`)."""
    return f"{folder}/records"
