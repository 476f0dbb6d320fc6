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
    require_free_memory(free=77 * GIB, total=80 * GIB, share=1)
    require_free_memory(free=76 * GIB, total=80 * GIB, share=0.25)


@pytest.mark.parametrize(("share", "words"), [(1, "80.0 GiB"), (0.25, "20.0 GiB")])
def test_a_gpu_that_is_in_use_is_refused_with_both_sizes(share: float, words: str) -> None:
    with pytest.raises(
        UserError, match=rf"workers.gpus = {share:g} may use {words} .* only 10.0 GiB are free"
    ) as error:
        require_free_memory(free=10 * GIB, total=80 * GIB, share=share)
    assert len(str(error.value).splitlines()) == 2


def test_on_a_cpu_nothing_is_limited() -> None:
    take_memory(torch.device("cpu"), 0)
