from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.cluster_utils import Cluster
from ray.exceptions import WorkerCrashedError
from repository_copy import make_one_stage
from small_settings import ROOT, preset_settings

from pipeline.cluster import submit
from pipeline.cluster.ray_cluster import MAX_RETRIES, capacity, nodes_at_most, ray_cluster, run_tasks, tasks_that_fit
from pipeline.errors import UserError
from pipeline.params import Params

# Workers cannot import a test module: what it defines travels with the task.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


# --- the connection -----------------------------------------------------------------------------------------


@pytest.fixture
def disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray.shutdown()


@pytest.mark.parametrize("by_environment", [True, False])
def test_an_address_where_nobody_listens_is_refused_with_its_name_in_seconds(
    disconnected: None, monkeypatch: pytest.MonkeyPatch, by_environment: bool
) -> None:
    if by_environment:
        monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(UserError) as error, ray_cluster(None if by_environment else "127.0.0.1:9"):
        pass
    assert "'127.0.0.1:9'" in str(error.value) and "RAY_ADDRESS" in str(error.value)
    assert len(str(error.value).splitlines()) <= 3
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("address", ["somewhere", "ray://127.0.0.1:10001", "no.such.host.invalid:6379"])
def test_an_address_that_cannot_be_one_is_refused_with_its_name(disconnected: None, address: str) -> None:
    with pytest.raises(UserError, match=re.escape(repr(address))), ray_cluster(address):
        pass


@pytest.mark.slow
def test_a_local_cluster_runs_the_packages_from_the_repository_root_and_is_gone_after_the_block() -> None:
    program = """
import ray
from pipeline.cluster.ray_cluster import ray_cluster, run_tasks

def task(number):
    import torch
    from pipeline.errors import UserError
    return UserError.__module__, number, torch.get_num_threads()

with ray_cluster(num_cpus=3):
    for num_cpus in (1, 3):
        print(next(run_tasks(task, [(5,)], description="try", num_cpus=num_cpus)))
print(ray.is_initialized())
"""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "RAY_ADDRESS", "OMP_NUM_THREADS")
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.stdout.splitlines() == [
        "(0, ('pipeline.errors', 5, 1))",
        "(0, ('pipeline.errors', 5, 3))",
        "False",
    ], done.stderr
    assert "WARNING" not in done.stderr, done.stderr


# --- tasks on two nodes -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[str]:
    """Return the address of a cluster of two nodes with one CPU each, which this process has joined."""
    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address)
    yield cluster.address
    ray.shutdown()
    cluster.shutdown()


def node_of(seconds: float) -> str:
    time.sleep(seconds)
    return ray.get_runtime_context().get_node_id()


def test_tasks_run_on_every_node_and_a_bar_counts_their_amounts(
    two_nodes: str, capfd: pytest.CaptureFixture[str]
) -> None:
    amounts = [10, 20, 30, 40]
    finished = dict(run_tasks(node_of, [(0.3,)] * 4, description="naming", unit="node", amounts=amounts))
    assert sorted(finished) == [0, 1, 2, 3]
    assert set(finished.values()) == {node["NodeID"] for node in ray.nodes()}
    assert re.search(r"naming: 100%.*100/100 .*node/s", capfd.readouterr().err)


def test_results_come_with_the_index_of_their_arguments(two_nodes: str) -> None:
    def divide(a: int, b: int) -> float:
        return a / b

    arguments = [(6, 3), (1, 2), (8, 2), (9, 1)]
    assert dict(run_tasks(divide, arguments, description="dividing")) == {0: 2.0, 1: 0.5, 2: 4.0, 3: 9.0}
    assert list(run_tasks(divide, [], description="dividing")) == []


def test_a_process_that_is_already_connected_stays_connected(two_nodes: str) -> None:
    with ray_cluster("127.0.0.1:9", num_cpus=7):
        assert len(ray.nodes()) == 2
    assert ray.is_initialized()


def test_no_more_tasks_are_in_flight_than_allowed(two_nodes: str) -> None:
    def span() -> tuple[float, float]:
        started = time.time()
        time.sleep(0.1)
        return started, time.time()

    spans = sorted(result for _, result in run_tasks(span, [()] * 4, description="waiting", max_in_flight=1))
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))


def test_a_task_whose_process_is_killed_is_run_again(two_nodes: str, tmp_path: Path) -> None:
    def die_once(number: int) -> int:
        marker = tmp_path / f"died-{number}"
        if number == 1 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    assert dict(run_tasks(die_once, [(0,), (1,), (2,)], description="dying")) == {0: 0, 1: 1, 2: 2}
    assert (tmp_path / "died-1").exists()


@pytest.mark.slow
def test_a_task_that_always_dies_is_given_up_and_named(two_nodes: str, tmp_path: Path) -> None:
    def die() -> None:
        (tmp_path / f"{time.time_ns()}").touch()
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(WorkerCrashedError) as error:
        list(run_tasks(die, [()], description="dying"))
    assert "dying: task 0 of 1" in error.value.__notes__[0]
    assert len(list(tmp_path.iterdir())) == MAX_RETRIES + 1


def test_an_error_of_the_function_keeps_its_type_and_message_and_the_other_tasks_are_cancelled(
    two_nodes: str, tmp_path: Path
) -> None:
    def fail_first(number: int) -> None:
        if number == 0:
            raise UserError("shard-00000.parquet is damaged")
        time.sleep(1.0)
        (tmp_path / str(number)).touch()

    with pytest.raises(UserError) as error:
        list(run_tasks(fail_first, [(number,) for number in range(8)], description="failing"))
    assert type(error.value) is UserError and str(error.value) == "shard-00000.parquet is damaged"
    wait_until_idle(cpus=2)
    assert len(list(tmp_path.iterdir())) < 7


def test_an_interrupt_passes_through_and_frees_the_cluster(two_nodes: str) -> None:
    def work() -> None:
        for _ in range(600):
            time.sleep(0.1)

    timer = threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        list(run_tasks(work, [()] * 6, description="working"))
    wait_until_idle(cpus=2)


@pytest.mark.slow
def test_a_command_tells_nodes_of_the_object_store_and_of_their_cluster_and_its_tasks_end_with_it(
    two_nodes: str,
) -> None:
    program = """
import os, time
from pipeline.cluster.ray_cluster import ray_cluster, run_tasks

def task(seconds):
    time.sleep(seconds)
    return os.environ.get("AWS_REGION"), os.environ["RAY_ADDRESS"]

with ray_cluster():
    for _, known in run_tasks(task, [(0,), *[(60,)] * 5], description="working"):
        print(*known, flush=True)
"""
    # The nodes have started without the variables: they can only know them from the command.
    port = two_nodes.rpartition(":")[2]
    environment = os.environ | {
        "RAY_ADDRESS": f"127.0.0.1:{port}",
        "AWS_REGION": "somewhere-1",
        "PYTHONPATH": str(ROOT),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == f"somewhere-1 {two_nodes}\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT and errors.splitlines()[-1] == "KeyboardInterrupt"
    wait_until_idle(cpus=2)


@pytest.mark.parametrize(
    ("num_cpus", "num_gpus", "tasks"),
    [
        *((1, 0, 8), (3, 0, 2), (0, 0, 8), (1, 1, 2), (1, 2, 1), (1, 0.25, 8), (0, 0.25, 8), (1, 0.6, 2), (4, 0.5, 2)),
        *((1, 0.2, 8), (0, 0.2, 10), (0, 0.1, 20), (0, 1e-5, 20_000)),
    ],
)
def test_a_part_of_a_gpu_is_a_part_of_a_single_one(num_cpus: float, num_gpus: float, tasks: int) -> None:
    assert tasks_that_fit({"CPU": 8.0, "GPU": 2.0}, num_cpus, num_gpus) == tasks


def test_a_task_that_no_node_can_hold_is_refused_rather_than_waited_for(two_nodes: str) -> None:
    with pytest.raises(UserError, match=r"training: a task needs 1 CPUs and 1 GPUs"):
        list(run_tasks(node_of, [(0,)], description="training", num_gpus=1))
    with pytest.raises(UserError, match=r"a task needs 2 CPUs.*\n.*has 2 CPUs and 0 GPUs on 2 nodes"):
        list(run_tasks(node_of, [(0,)], description="training", num_cpus=2))


def test_nodes_that_the_autoscaler_may_launch_count_as_available(
    two_nodes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (capacity()["GPU"], nodes_at_most()) == (0, 2)
    # `ray up` leaves the prepared configuration in the home directory of the head.
    (tmp_path / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(prepared_configuration()))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (capacity()["GPU"], nodes_at_most()) == (0, 2)  # no: this process did not ask for that cluster
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert (capacity()["GPU"], nodes_at_most()) == (4, 5)


def test_machines_of_ones_own_count_as_large_as_those_that_are_there(
    two_nodes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"provider": {"type": "local", "head_ip": "10.0.0.1", "worker_ips": [f"10.0.0.{i}" for i in range(2, 7)]}}
    configuration = yaml.safe_load((ROOT / "cluster.yaml").read_text()) | own
    for part in ("docker", "head_node_type", "available_node_types", "max_workers"):
        del configuration[part]
    (tmp_path / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(prepare_config(configuration)))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert (capacity()["CPU"], nodes_at_most()) == (6, 6)  # of one core each


def wait_until_idle(cpus: int, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while ray.available_resources().get("CPU", 0) < cpus:
        assert time.monotonic() < deadline, "tasks still hold the cluster's CPUs"
        time.sleep(0.1)


# --- cluster.yaml -------------------------------------------------------------------------------------------


def prepared_configuration() -> dict:
    return prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))


def test_the_cluster_file_fits_the_schema_of_ray() -> None:
    configuration = prepared_configuration()
    validate_config(configuration)
    worker = configuration["available_node_types"]["gpu"]
    assert (worker["min_workers"], worker["max_workers"]) == (0, 4)


def test_the_nodes_run_the_ray_and_the_python_that_are_tested_here() -> None:
    docker = yaml.safe_load((ROOT / "cluster.yaml").read_text())["docker"]
    tag = f"rayproject/ray:{ray.__version__}-py{sys.version_info.major}{sys.version_info.minor}"
    assert (docker["head_image"], docker["worker_image"]) == (tag, f"{tag}-gpu")


def test_the_nodes_get_all_that_the_stages_import() -> None:
    (install,) = yaml.safe_load((ROOT / "cluster.yaml").read_text())["setup_commands"]
    assert install.endswith('-c constraints.txt -e ".[pipeline]"')


@pytest.mark.parametrize("file", ["cifar10", "imagenet"])
def test_the_ready_settings_fit_on_the_cluster(file: str) -> None:
    workers = Params.model_validate(preset_settings(file)).workers
    worker = prepared_configuration()["available_node_types"]["gpu"]
    assert workers.number * workers.gpus <= worker["max_workers"] * worker["resources"]["GPU"]
    assert workers.cpus <= worker["resources"]["CPU"]


def test_the_nodes_get_the_repository_where_the_submitted_script_expects_it() -> None:
    configuration = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    assert configuration["file_mounts"][submit.REPOSITORY.replace("~", "/home/ray")] == "."
    assert all(".git" not in (pattern, pattern.strip("/")) for pattern in configuration["rsync_exclude"])


def test_the_nodes_do_not_get_what_git_ignores_but_give_all_results_back() -> None:
    configuration = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()}
    assert ignored <= {pattern.strip("/") for pattern in configuration["rsync_exclude"]}
    assert "rsync_filter" not in configuration  # DVC's .gitignore files name results


def test_ray_on_the_nodes_answers_only_to_those_with_the_token() -> None:
    configuration = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    assert "--env RAY_AUTH_MODE=token" in configuration["docker"]["run_options"]
    assert configuration["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"


# --- the submitted script -----------------------------------------------------------------------------------


def test_the_storage_is_that_of_the_last_override_or_else_of_the_parameter_file(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("storage: folder\n")
    assert submit.storage_setting(tmp_path, []) == "folder"
    assert submit.storage_setting(tmp_path, ["storage=s3://a", "seed=1", "params.yaml:storage=s3://b"]) == "s3://b"


def test_settings_make_an_experiment_and_none_make_a_reproduction() -> None:
    assert submit.dvc_command([], ["train"])[2:] == ["dvc", "repro", "train"]
    assert submit.dvc_command(["seed=1", "storage=s3://a"], [])[2:] == (
        ["dvc", "exp", "run", "-S", "seed=1", "-S", "storage=s3://a"]
    )


def test_stages_use_all_threads_this_python_and_the_given_tracking_server() -> None:
    environment = submit.stage_environment({"OMP_NUM_THREADS": "1", "PATH": "/bin", "HOME": "/h"}, "http://tracking")
    assert "OMP_NUM_THREADS" not in environment and environment["HOME"] == "/h"
    assert environment["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert environment["MLFLOW_TRACKING_URI"] == "http://tracking"


def test_a_folder_without_a_pipeline_is_refused_with_its_name(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert submit.main(["--repository", str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err


STAGE = """
import sys
import ray
import yaml

parameters = yaml.safe_load(open("params.yaml"))
if parameters["greeting"] == "fail":
    sys.exit(3)
ray.init(logging_level="ERROR")
print(parameters["greeting"], "CPUs:", ray.cluster_resources()["CPU"])
"""


@pytest.fixture(scope="module")
def small_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a repository with one stage that prints the resources of the cluster it runs on."""
    folder = tmp_path_factory.mktemp("repository")
    make_one_stage(folder, STAGE, {"storage": "folder", "greeting": "hello"})
    # As it arrives on the head from a checkout without git: the script makes a new repository.
    subprocess.run(["rm", "-r", ".git"], cwd=folder, check=True)
    return folder


def run_submitted(address: str, repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a copy of the script from elsewhere, with the environment of the launcher's shell."""
    script = repository.parent / "submit.py"
    script.write_bytes((ROOT / "pipeline" / "submit.py").read_bytes())
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "RAY_ADDRESS": address,
        "OMP_NUM_THREADS": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
    }
    command = [sys.executable, str(script), "--repository", str(repository), *arguments]
    return subprocess.run(command, cwd=repository.parent, env=environment, capture_output=True, text=True, timeout=180)


@pytest.mark.slow
def test_a_folder_that_all_nodes_share_is_a_storage(two_nodes: str, small_repository: Path) -> None:
    done = run_submitted(two_nodes, small_repository)
    assert done.returncode == 0, done.stderr
    assert "hello CPUs: 2.0" in done.stdout


@pytest.mark.slow
def test_the_pipeline_runs_on_the_cluster_with_the_given_settings_even_without_git(
    two_nodes: str, small_repository: Path
) -> None:
    done = run_submitted(two_nodes, small_repository, "-S", "storage=s3://bucket/prefix", "-S", "greeting=hi")
    assert done.returncode == 0, done.stderr
    assert "hi CPUs: 2.0" in done.stdout
    assert yaml.safe_load((small_repository / "params.yaml").read_text())["storage"] == "s3://bucket/prefix"
    again = run_submitted(two_nodes, small_repository)
    assert again.returncode == 0 and "didn't change" in again.stdout, again.stderr


@pytest.mark.slow
def test_a_failed_pipeline_ends_with_the_status_of_dvc(two_nodes: str, small_repository: Path) -> None:
    done = run_submitted(two_nodes, small_repository, "-S", "storage=s3://bucket/prefix", "-S", "greeting=fail")
    assert done.returncode not in (0, 1)
    assert "failed to reproduce 'show'" in done.stderr
