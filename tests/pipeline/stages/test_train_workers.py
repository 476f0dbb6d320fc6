"""Steps and runs, which are the same for any number of workers, on any nodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from flaky_bucket import FlakyBucket
from ray.cluster_utils import Cluster
from safetensors.numpy import load
from small_settings import small_settings
from training_runs import Run, assert_same_run, history, reference_run, take_architectures, weights

from ghn.models.config import GHNConfig
from ghn.models.ghn import GHN
from ghn.training.step import StepSettings, Stopwatch, accumulate_micro_batch
from pipeline.architectures.store import ArchitectureStore
from pipeline.images.load import load_cached_images
from pipeline.params import Params
from pipeline.stages.train import train
from pipeline.storage.files import write_bytes
from pipeline.training.gradient_reduction import GradientReducer
from pipeline.training.job import RunSettings
from pipeline.training.step_loader import StepLoader, training_set_of

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
RAY_CORES = 3
RUN = {"steps": 30, "precision": "fp64", "micro_batches": 6, "validation": {"every": 15}}


@pytest.fixture(scope="module")
def reference(ray_on_this_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run of one worker: thirty steps of eight architectures in double precision."""
    settings = small_settings(meta_batch=8, train=RUN)
    return reference_run(tmp_path_factory.mktemp("reference"), Params.model_validate(settings))


def assert_equal_weights(run: Run) -> None:
    mine, other = load(weights()), load(run.weights)
    for name, values in other.items():
        np.testing.assert_allclose(mine[name], values, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("micro_batches", [1, 6])  # workers divide the networks of one, or compute whole ones
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)], ids=str)
def test_the_gradient_of_a_step_is_that_of_one_process(
    reference: Run, small_project: Callable[..., Params], dtype: torch.dtype, tolerance: float, micro_batches: int
) -> None:
    take_architectures(reference)
    settings = RunSettings.of(small_project(meta_batch=8, train=RUN | {"micro_batches": micro_batches}))
    training_set = training_set_of(ArchitectureStore("storage")["train"])
    data = load_cached_images("digits", 8, "storage/images")
    torch.manual_seed(0)
    ghn = GHN(GHNConfig(10, 8, "ghn2", 8, 5, 50)).to(dtype)

    def gradient(workers: int) -> torch.Tensor:
        reducer = GradientReducer(ghn.parameters(), 8)
        for rank in range(workers):
            prepared = StepLoader(settings, training_set, data, ghn, rank, workers, CPU, dtype)(3)
            for micro_batch in prepared.micro_batches.values():
                images, labels, watch = prepared.images, prepared.labels, Stopwatch(CPU)
                reducer.add(accumulate_micro_batch(ghn, micro_batch, images, labels, 3, StepSettings(seed=0), watch))
        reducer.all_reduce(0, 1, {}, 1.0, [])
        return torch.cat([weight.grad.flatten() for weight in ghn.parameters()])

    one = gradient(1)
    for workers in (2, 3, 8):
        assert (gradient(workers) - one).norm() <= tolerance * one.norm()


def test_the_number_of_workers_does_not_change_the_run(reference: Run, small_project: Callable[..., Params]) -> None:
    take_architectures(reference)
    train(small_project(meta_batch=8, train=RUN, workers={"number": 3}))
    assert_same_run(reference)
    assert_equal_weights(reference)
    assert history()["imbalance"].between(1, 3).all()


def test_workers_on_several_nodes_train_together_while_the_bucket_of_their_checkpoints_restarts(
    reference: Run,
    small_project: Callable[..., Params],
    flaky_bucket: FlakyBucket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ray.shutdown()  # the last test: the others share a Ray of one node
    take_architectures(reference, storage=False)
    for file in reference.storage.rglob("*.parquet"):
        write_bytes(f"{flaky_bucket.url}/{file.relative_to(reference.storage)}", file.read_bytes())
    workers = {"number": 2, "checkpoint_every": 3}
    params = small_project(meta_batch=8, train=RUN, workers=workers, storage=flaky_bucket.url)
    Path(".ray").symlink_to(Path.home() / ".ray")  # the token by which Ray's processes know each other
    monkeypatch.setenv("HOME", str(Path.cwd()))  # where nodes keep their copies of images
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        with flaky_bucket.restart_after(20, "/checkpoint_", seconds=3):
            train(params)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert_same_run(reference)
    assert_equal_weights(reference)
