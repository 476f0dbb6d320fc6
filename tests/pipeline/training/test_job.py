from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from pydantic import ValidationError
from small_settings import small_settings

from pipeline.architectures.store import Manifest, SplitEntry
from pipeline.params import Params
from pipeline.training.job import RunSettings, WorkerJob, run_name


def entry(folder: str) -> SplitEntry:
    return {"folder": folder, "fingerprint": folder, "rows": 0, "bytes": 0, "shards": []}


SPLITS = {"train": entry("a"), "val": entry("b"), "test": entry("c")}
MANIFEST: Manifest = {"splits": SPLITS}


def name(manifest: Manifest = MANIFEST, images_hash: str = "0", **changes: Any) -> str:
    return run_name(RunSettings.of(Params.model_validate(small_settings(**changes))), manifest, images_hash)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"dataset": "faces"},
        {"meta_batch": 4},
        {"images": {"flip": True}},
        {"hypernetwork": {"variant": "ghn1"}},
        {"train": {"steps": 7}},
        {"train": {"optimizer": {"weight_decay": 0.5}}},
        {"train": {"schedule": {"decay": 0.5}}},
        {"train": {"validation": {"every": None}}},
    ],
    ids=str,
)
def test_a_run_has_another_name_if_something_else_is_learned(changes: dict[str, Any]) -> None:
    assert name(**changes) != name()


@pytest.mark.parametrize(
    "changes",
    [
        {"workers": {"number": 3, "minimum": 2, "cpus": 2, "gpus": 1, "placement": "SPREAD"}},
        {"workers": {"max_failures": 9, "checkpoint_every": 1, "profile_steps": 2}},
        {"cluster": {"cpus": 3}},
        {"evaluate": {"batch": 9}},
        {"storage": "elsewhere"},
        {"tracking": {"experiment": "other"}},
    ],
    ids=str,
)
def test_a_run_keeps_its_name_if_it_is_only_run_in_another_way(changes: dict[str, Any]) -> None:
    assert name(**changes) == name()


def test_a_run_has_another_name_if_it_reads_other_data() -> None:
    def manifest(split: str) -> Manifest:
        return {"splits": SPLITS | {split: entry("other")}}

    assert len({name(), name(images_hash="1"), name(manifest("train")), name(manifest("val"))}) == 4
    assert name(manifest("test")) == name()  # training does not read it


def test_a_job_reaches_a_worker_as_plain_values() -> None:
    params = Params.model_validate(small_settings())
    job = WorkerJob(
        settings=RunSettings.of(params),
        workers=params.workers,
        storage="s3://bucket/prefix",
        manifest=MANIFEST,
        images="s3://bucket/prefix/images/digits-8-0",
        metrics_buffer="steps-0",
    )
    sent = json.loads(json.dumps(job.model_dump()))
    assert WorkerJob.model_validate(sent) == job
    damaged = copy.deepcopy(sent)
    damaged["settings"]["train"]["batch"] = "many"
    with pytest.raises(ValidationError, match=r"settings\.train\.batch"):
        WorkerJob.model_validate(damaged)
