from __future__ import annotations

import pytest
import torch
from small_settings import small_settings

from pipeline.errors import UserError
from pipeline.params import Params, WorkerSettings
from pipeline.training.shared_gpu import backend_of, require_free_memory, take_memory

GIB = 2**30


def workers(gpus: float) -> WorkerSettings:
    return Params.model_validate(small_settings(workers={"number": 4, "gpus": gpus})).workers


@pytest.mark.parametrize(("gpus", "backend"), [(0, "gloo"), (0.25, "gloo"), (0.5, "gloo"), (1, "nccl")])
def test_workers_that_share_a_gpu_are_not_connected_by_nccl(gpus: float, backend: str) -> None:
    assert backend_of(workers(gpus)) == backend


def test_a_worker_starts_beside_others_that_have_only_started() -> None:
    require_free_memory(lambda: (76 * GIB, 80 * GIB), share=0.25)


def test_a_worker_waits_for_memory_that_is_about_to_be_freed() -> None:
    free = iter([5 * GIB, 40 * GIB])
    require_free_memory(lambda: (next(free), 80 * GIB), share=0.5)


def test_a_gpu_that_is_in_use_is_refused_with_both_sizes() -> None:
    with pytest.raises(UserError, match=r"workers.gpus = 0.25 may use 20.0 GiB .* only 10.0 GiB are free") as error:
        require_free_memory(lambda: (10 * GIB, 80 * GIB), share=0.25, wait_seconds=0)
    assert len(str(error.value).splitlines()) == 2


def test_on_a_cpu_nothing_is_limited() -> None:
    take_memory(torch.device("cpu"), 0)
