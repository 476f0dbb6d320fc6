"""How many networks per second stages sgd and evaluate do with several workers of one thread each.

    python benchmarks/sgd_scaling.py --workers 2 [--networks 24] [--epochs 1] [--repeats 2]

Runs the tasks of both stages at the settings of `params.yaml`, on the first architectures of split test: of stage sgd,
training from random initialisation with `--epochs` and the measurements after it; of stage evaluate, the measurement of
each evaluated initialisation, with an untrained hypernetwork. The same tasks run on one worker at a time, then on
`--workers`, in processes that have imported all and seen a task. Each time counts as the smaller of its `--repeats`,
because the speed of shared machines changes from minute to minute. The machine needs a core for each worker.

The last line is JSON: `workers`, `networks`, and for each stage `networks_per_second` with one worker and with several,
and `speedup`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Annotated, Any

import ray
import torch
import typer
from frame import RecordName, finish, introduce
from scratch_project import project_settings, scratch_project

from ghn.models.hypernetwork import Hypernetwork
from pipeline.architectures.store import ArchitectureStore
from pipeline.cluster.ray_cluster import run_tasks
from pipeline.evaluation.initialisations import evaluated_initialisations
from pipeline.evaluation.measurement import measure_group
from pipeline.evaluation.networks import Candidate
from pipeline.evaluation.trained_networks import TrainingRun, train_and_measure
from pipeline.images.load import load_images
from pipeline.params import Params
from pipeline.stages.evaluate import measured_images
from pipeline.stages.sgd import first_candidates, setup_of

Task = tuple[Callable[..., Any], list[tuple]]
"""A function, and the arguments of each of its tasks."""


def settings_of(networks: int) -> dict[str, Any]:
    """Return the default settings, with so many architectures of split test and few others."""
    settings = project_settings()
    settings["generate"] |= dict.fromkeys(("train", "val", "wide", "deep", "dense", "bn_free"), 1) | {"test": networks}
    settings["train"]["validation"]["architectures"] = 1
    settings["sgd"] |= {"architectures": {}, "sources": 1}
    for stage in ("finetune", "adapt", "condition"):
        settings[stage]["architectures"] = 1
    return settings


def tasks_of(params: Params, candidates: Sequence[Candidate], epochs: int) -> dict[str, Task]:
    """Return the tasks of both stages, by stage, the most expensive first."""
    images = load_images(params.dataset, params.images, params.storage)
    ordered = sorted(candidates, key=lambda candidate: candidate.network.summary(32, 10).flops, reverse=True)
    config = params.hypernetwork.config(len(images.classes), params.images.size)
    evaluated = measured_images(images, params.evaluate)
    shared = (evaluated_initialisations(), ray.put(Hypernetwork(config).eval()), ray.put(evaluated), params.evaluate)
    setup = setup_of(params, images)
    rate = params.sgd.learning_rates[0]
    return {
        "sgd": (train_and_measure, [(TrainingRun(candidate, epochs, rate), setup) for candidate in ordered]),
        "evaluate": (measure_group, [([candidate], *shared, params.seed) for candidate in ordered]),
    }


def seconds_of(task: Task, workers: int) -> float:
    """Return the seconds that all tasks take on so many workers."""
    function, arguments = task
    started = perf_counter()
    for _ in run_tasks(function, arguments, description=f"{workers} at once", unit="network", max_in_flight=workers):
        pass
    return perf_counter() - started


def main(
    workers: Annotated[int, typer.Option(min=2, help="Processes of one thread.")] = 2,
    networks: Annotated[int, typer.Option(min=2, help="Architectures of split test.")] = 24,
    epochs: Annotated[int, typer.Option(min=1, help="Of training.")] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Times with each number of workers, in turn.")] = 2,
    record: RecordName = None,
) -> None:
    """Compare a number of workers with one."""
    settings = settings_of(networks)
    params = Params.model_validate(settings)
    seconds: dict[tuple[str, int], list[float]] = {}
    with scratch_project(settings, cpus=workers):
        candidates = first_candidates(ArchitectureStore(params.storage), "test", networks, params)
        tasks = tasks_of(params, candidates, epochs)
        for function, arguments in tasks.values():
            seconds_of((function, arguments[-workers:]), workers)  # which starts the workers
        for _ in range(repeats):
            for stage, task in tasks.items():
                for count in (1, workers):
                    seconds.setdefault((stage, count), []).append(seconds_of(task, count))
    introduce(f"PyTorch {torch.__version__}", f"{networks} networks", f"{params.images.size}×{params.images.size}")
    result: dict[str, Any] = {"workers": workers, "networks": networks}
    for stage in tasks:
        one, several = (networks / min(seconds[stage, count]) for count in (1, workers))
        print(f"{stage}: {one:.3f} networks/s with one worker, {several:.3f} with {workers}: {several / one:.2f} times")
        speeds = {"1": round(one, 4), str(workers): round(several, 4)}
        result[stage] = {"networks_per_second": speeds, "speedup": round(several / one, 3)}
    finish(result, record)


if __name__ == "__main__":
    typer.run(main)
