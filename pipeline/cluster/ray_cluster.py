"""Ray: the connection to a cluster, and a function run over many arguments on it.

A stage does its work inside `with ray_cluster():`. On a laptop that starts Ray with the cores of the machine;
where `RAY_ADDRESS` names a cluster (as `pipeline/submit.py` does on a head node) it joins that cluster, and
the stage runs unchanged.

Threads: during a task Ray sets OMP_NUM_THREADS to the whole part of its `num_cpus`, 1 at least, unless the
node's environment has a value of its own. PyTorch reads that variable only once per worker process, and a worker
process may take tasks of any size; so `run_tasks` sets PyTorch's number of threads before each task.

Imports: Ray puts the driver's working directory on the path of its workers. Where the packages are not
installed, the root of the repository as working directory is enough, on one machine or under the same path on
all nodes.

SIGTERM: Ray's C++ code replaces the handler of this process by one that prints a stack trace. `ray_cluster` puts in
one that raises `Terminated`.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.exceptions import LocalRayletDiedError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from pipeline.cluster.ray_private import START_UP_LOGGER, bootstrap_address, host_and_port, temp_dir_for_sockets
from pipeline.console import progress_bar
from pipeline.errors import Terminated, UserError
from pipeline.secrets import without_user_info
from pipeline.termination import sigterm_raises_terminated

log = logging.getLogger(__name__)

ADDRESS_VARIABLE = "RAY_ADDRESS"
CONNECT_SECONDS = 5.0
JOIN_SECONDS = 300.0
"""How long nodes that start together may differ: the first start of Ray on a node reads gigabytes."""

MAX_RETRIES = 3
"""Retries of a task whose process or node died."""

_connected_for_block = False
"""Whether the connection of this process ends with the block of `ray_cluster` that made it."""

PASSED_ON = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_MAX_ATTEMPTS",
    "AWS_RETRY_MODE",
    "AWS_DEFAULT_REGION",
    "AWS_REGION",
    "MLFLOW_TRACKING_URI",
)
"""Environment variables that the driver passes on to the nodes of a cluster.

None is a secret, because Ray shows them to all users of the cluster: users and passwords in addresses are left out.
Nodes read and write buckets by their own role.
"""


@contextmanager
def ray_cluster(address: str | None = None, num_cpus: int | None = None) -> Iterator[None]:
    """Connect this process to Ray for the time of the block.

    Join the cluster at `address` ("host:port", or "auto" for the one that runs on this machine); where that is
    None or "auto", `RAY_ADDRESS` decides first. Without either, or with "local", start Ray on this machine alone
    with `num_cpus` cores (None: all of them), and stop it at the end; a cluster decides its own cores. A process
    that is already connected stays as it is, during and after the block.

    Raises:
        UserError: no cluster answers at the address (within seconds).
        Terminated: this process received SIGTERM within the block.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address in (None, "", "auto"):
        address = os.environ.get(ADDRESS_VARIABLE) or address or "local"
    global _connected_for_block
    with sigterm_raises_terminated() as catch_sigterm:
        _connected_for_block = True
        try:
            _start_or_connect(address, num_cpus)
            catch_sigterm()  # again, because Ray has replaced the handler
            yield
        finally:
            ray.shutdown()
            _connected_for_block = False


def _start_or_connect(address: str, num_cpus: int | None) -> None:
    try:
        if address == "local":
            _start(num_cpus)
        else:
            _connect(address)
    except SystemExit as ending:  # by Ray's own handler of SIGTERM, which is there during the start
        raise Terminated("terminated") from ending


def _start(num_cpus: int | None) -> None:
    logging.getLogger(START_UP_LOGGER).setLevel(logging.ERROR)
    temp_dir = temp_dir_for_sockets()
    if temp_dir is not None:
        log.warning("TMPDIR is too long a path for Ray's sockets: Ray keeps its files in %s", temp_dir)
    ray.init(
        address="local",
        num_cpus=num_cpus,
        include_dashboard=False,
        logging_level=logging.WARNING,
        # What workers print is Ray talking to itself; it stays in Ray's log files. Errors reach the driver anyway.
        log_to_driver=False,
        _temp_dir=temp_dir,
    )


def _connect(address: str) -> None:
    found = _answering(address)
    variables = {name: without_user_info(os.environ[name]) for name in PASSED_ON if name in os.environ}
    # Ray Train's actors ask for the state of their cluster; without this they look for one among the processes of
    # their machine, and end with a stack trace where there are two.
    variables[ADDRESS_VARIABLE] = found
    try:
        ray.init(address=found, logging_level=logging.WARNING, runtime_env={"env_vars": variables})
    except (ConnectionError, RuntimeError, RayError) as error:  # another version of Ray, no token, not Ray
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"cannot join the Ray cluster at {address!r}: {reason}") from error


def _answering(address: str) -> str:
    """Return "host:port" of a cluster, once something there has taken a connection.

    Raises:
        UserError: within seconds, if nothing listens there. Ray itself waits for minutes and then says little.
    """
    hint = f"start a cluster (`ray up cluster.yaml`), or unset {ADDRESS_VARIABLE} to use this machine alone"
    if "://" in address:
        raise UserError(
            f"Ray cluster address {address!r}: must be host:port, auto or local; stages run on the\n"
            "cluster itself (`ray submit cluster.yaml pipeline/submit.py`), not through a Ray client"
        )
    try:
        found = bootstrap_address(address)
        socket.create_connection(host_and_port(found), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"no Ray cluster answers at {address!r}: {reason}\n{hint}") from error
    except ValueError as error:
        raise UserError(f"Ray cluster address {address!r}: must be host:port, auto or local\n{hint}") from error
    return found


def capacity() -> dict[str, int]:
    """Return the number of CPUs and GPUs that the cluster has now or, if more, after it has grown."""
    now, later = ray.cluster_resources(), _node_types()
    return {
        name: int(max(now.get(name, 0), sum(count * size.get(name, 0) for count, size in later)))
        for name in ("CPU", "GPU")
    }


def alive_nodes() -> list[dict[str, Any]]:
    """Return the nodes that the cluster has now, as `ray.nodes()` describes them."""
    return [node for node in ray.nodes() if node["Alive"]]


def nodes_at_most() -> int:
    """Return the number of nodes, the head included, that the cluster has now or, if more, may grow to."""
    limit = _launcher_config().get("max_workers", 0)
    return max(len(alive_nodes()), 1 + limit)


def wait_for_nodes(number: int) -> None:
    """Return when the cluster has that many nodes.

    Raises:
        UserError: it has not after JOIN_SECONDS.
    """
    deadline = time.monotonic() + JOIN_SECONDS
    while (alive := len(alive_nodes())) < number:
        if time.monotonic() > deadline:
            raise UserError(f"only {alive} of {number} nodes have joined the cluster after {JOIN_SECONDS:.0f} s")
        time.sleep(0.5)


def release_placement_groups() -> None:
    """Release the places on nodes that this connection has reserved. Ray does not release those of a dead actor."""
    job = ray.get_runtime_context().get_job_id()
    for group_id, group in placement_group_table().items():
        if group_id.endswith(job) and group["state"] != "REMOVED":  # the id of a group ends with the id of its job
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group_id))))


def run_tasks(
    function: Callable[..., Any],
    arguments: Sequence[tuple],
    *,
    description: str,
    num_cpus: float = 1,
    max_in_flight: int | None = None,
    num_gpus: float = 0,
    unit: str = "shard",
    amounts: Sequence[int] | None = None,
) -> Iterator[tuple[int, Any]]:
    """Run `function(*arguments[i])` for every i on the cluster; yield (i, result) as each finishes.

    At most `max_in_flight` tasks are given to Ray at a time (None: twice what the cluster can run at once, so that
    no core waits and the queue does not fill the memory). A task whose process or node dies is run again, up to
    MAX_RETRIES times: it must leave the same result when it is run twice. After an error, after Ctrl-C and when the
    caller stops early, the other tasks end with the block of `ray_cluster` around. In a process that was connected
    before, they are cancelled: running ones get a KeyboardInterrupt at their next Python step.

    A progress bar with rate and time left counts `unit`s: `amounts[i]` for task i, else one.

    Raises:
        UserError: no node is large enough for a task.
        Exception: the function raised it; its type is kept.
    """
    assert amounts is None or len(amounts) == len(arguments)
    if not arguments:
        return
    slots = slots_of(num_cpus, num_gpus)
    if slots == 0:
        have = {"CPU": 0, "GPU": 0} | ray.cluster_resources()
        raise UserError(
            f"{description}: a task needs {num_cpus:g} CPUs and {num_gpus:g} GPUs, which no node has\n"
            f"(the cluster has {have['CPU']:g} CPUs and {have['GPU']:g} GPUs on {nodes_at_most()} nodes)"
        )
    remote = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=MAX_RETRIES, scheduling_strategy="SPREAD")(
        _with_its_threads(function)
    )
    waiting = iter(range(len(arguments)))
    running: dict[ray.ObjectRef, int] = {}
    with progress_bar(description, unit, sum(amounts) if amounts is not None else len(arguments)) as bar:
        try:
            while True:
                # Computed again each time, because nodes join and leave a cluster while it works.
                limit = max_in_flight or 2 * max(slots, slots_of(num_cpus, num_gpus))
                while len(running) < limit and (index := next(waiting, None)) is not None:
                    running[remote.remote(*arguments[index])] = index
                if not running:
                    return
                done, _ = ray.wait(list(running), num_returns=1, timeout=max(1.0, bar.mininterval))
                if not done:
                    bar.refresh()  # so that the clock moves while long tasks run
                    continue
                reference = done.pop()
                index = running.pop(reference)
                result = _result(reference, f"{description}: task {index} of {len(arguments)}")
                del reference  # the store keeps a result as long as a reference to it lives
                bar.update(amounts[index] if amounts is not None else 1)
                yield index, result
        finally:
            # Ray aborts the process that cancels a task in the moment in which it finishes (seen with 2.60: "Tried to
            # complete task that was not pending"). So nothing is cancelled that ends with the connection anyway. A
            # caller that stopped early may have left the cluster before this generator is closed.
            for reference in running if ray.is_initialized() and not _connected_for_block else ():
                ray.cancel(reference)


def _with_its_threads(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function, run by PyTorch with as many threads as the task has."""

    @wraps(function)
    def run(*arguments: Any) -> Any:
        if torch := sys.modules.get("torch"):  # a task that imports it later gets the threads by that
            torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"].split(",")[0]))
        return function(*arguments)

    return run


def _result(reference: ray.ObjectRef, what: str) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        # Ray's own exception is of the right type too, but its message is the worker's whole traceback.
        error.cause.add_note(what)
        raise error.cause from error
    except LocalRayletDiedError as error:  # nothing is tried again without it
        error.add_note(f"{what}: the Ray processes of this command's own node have died")
        raise
    except RayError as error:
        error.add_note(f"{what}, tried {MAX_RETRIES + 1} times")
        raise


def slots_of(num_cpus: float, num_gpus: float) -> int:
    """Return how many tasks of this size run at once on the nodes of the cluster or, if more, after it has grown."""
    now = sum(tasks_that_fit(node["Resources"], num_cpus, num_gpus) for node in alive_nodes())
    return max(now, sum(count * tasks_that_fit(size, num_cpus, num_gpus) for count, size in _node_types()))


def tasks_that_fit(resources: Mapping[str, float], num_cpus: float, num_gpus: float) -> int:
    """Return how many tasks a node with these resources runs at once."""
    cpus, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
    limits = [_times(num_cpus, cpus)] if num_cpus else []
    if num_gpus:  # a part of a GPU is a part of a single one
        limits.append(_times(num_gpus, gpus) if num_gpus >= 1 else int(gpus) * _times(num_gpus, 1))
    return min(limits, default=int(cpus))  # one that needs neither takes a process all the same


def _times(part: float, whole: float) -> int:
    """Return how often a part fits into a whole, in ten-thousandths, as Ray counts; a part is at least one of them."""
    return round(whole * 10_000) // max(1, round(part * 10_000))


def _node_types() -> list[tuple[int, Mapping[str, float]]]:
    """Return (number, resources of one) for each type of node that the autoscaler may run; empty without one.

    Machines of one's own have no size before they are there: they are taken to be like the largest node that is.
    """
    config = _launcher_config()
    limit = config.get("max_workers", 0)
    types = []
    for name, node_type in config.get("available_node_types", {}).items():
        is_head = name == config.get("head_node_type")
        number = is_head + min(node_type.get("max_workers", 0 if is_head else limit), limit)
        types.append((number, node_type.get("resources") or _largest_node()))
    return types


def _largest_node() -> dict[str, float]:
    sizes = [node["Resources"] for node in alive_nodes()]
    return max(sizes, key=lambda size: (size.get("GPU", 0), size.get("CPU", 0)), default={})


def _launcher_config() -> dict[str, Any]:
    """Return the configuration that the cluster launcher left on the head node; empty elsewhere.

    An autoscaled cluster starts with its head alone and grows when work waits, so its present size is not its limit.
    """
    path = Path.home() / "ray_bootstrap_config.yaml"
    if not os.environ.get(ADDRESS_VARIABLE) or not path.exists():
        return {}
    return yaml.safe_load(path.read_text())
