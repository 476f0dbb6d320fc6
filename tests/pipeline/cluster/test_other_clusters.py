"""Clusters that `ray up` does not make: the image, and the manifests of Kubernetes.

Neither a Docker engine nor Kubernetes is needed. What is checked: the manifests fit the schemas of Kubernetes and of
KubeRay; Ray's own code reads the same nodes from them as from cluster.yaml; the line that KubeRay submits runs the
pipeline on a Ray that asks for a token. Where a Docker engine answers, the image is built.
"""

from __future__ import annotations

import copy
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.scripts.scripts import drain_node
from repository_copy import make_one_stage
from small_settings import ROOT

from pipeline.cluster import submit
from pipeline.cluster.ray_cluster import capacity, nodes_at_most
from pipeline.params import Params, set_leaf
from pipeline.secrets import SECRET_VARIABLES, hidden

CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())
DOCKERFILE = ROOT / "Dockerfile"
MANIFESTS = sorted((ROOT / "kubernetes").glob("*.yaml"))
DOCUMENTS = [document for file in MANIFESTS for document in yaml.safe_load_all(file.read_text())]
(JOB,) = (document for document in DOCUMENTS if document["kind"] == "RayJob")
(LIMITS,) = (document for document in DOCUMENTS if document["kind"] == "ConfigMap")
RAY_CLUSTER = JOB["spec"]["rayClusterSpec"]
(WORKERS,) = RAY_CLUSTER["workerGroupSpecs"]

HOME = "/home/ray"
REPOSITORY = submit.REPOSITORY.replace("~", HOME)

KUBERNETES = ("1.29", "1.37")
"""The oldest version that has all that the manifests use (ReadWriteOncePod), and the newest whose schemas are here."""


def pods() -> dict[str, dict[str, Any]]:
    """Return the specification of each pod, by the name of its container; one for KubeRay's own autoscaler."""
    specifications = [document["spec"] for document in DOCUMENTS if document["kind"] == "Pod"]
    for template in (
        JOB["spec"]["submitterPodTemplate"],
        RAY_CLUSTER["headGroupSpec"]["template"],
        WORKERS["template"],
    ):
        specifications.append(template["spec"])
    options = {name: RAY_CLUSTER["autoscalerOptions"][name] for name in ("resources", "securityContext")}
    autoscaler = {"name": "autoscaler", "image": "of the head", **options}
    # KubeRay puts it into the head's pod.
    head = RAY_CLUSTER["headGroupSpec"]["template"]["spec"]
    specifications.append({"containers": [autoscaler], "securityContext": head["securityContext"]})
    return {specification["containers"][0]["name"]: specification for specification in specifications}


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile, each with its arguments on one line."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(name, " ".join(rest.split())) for name, rest in re.findall(r"^([A-Z]+) (.*)$", text, re.MULTILINE)]


def pinned(package: str) -> str:
    return re.search(rf"^{package}==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]


# --- schemas ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", KUBERNETES)
def test_manifests_fit_the_schemas_of_kubernetes(version: str) -> None:
    as_pods = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": specification}
        for name, specification in pods().items()
    ]
    for document in [*(document for document in DOCUMENTS if document is not JOB), *as_pods]:
        kubernetes_validate.validate(document, version, strict=True)


def test_the_job_fits_the_schema_of_kuberay_and_one_with_an_unknown_field_does_not() -> None:
    schema = yaml.safe_load((Path(__file__).parent / "rayjob_schema.yaml").read_text())
    jsonschema.validate(JOB, schema, jsonschema.Draft202012Validator)
    misspelt = copy.deepcopy(JOB)
    misspelt["spec"]["rayClusterSpec"]["autoscalerOptions"]["idleTimeoutMinutes"] = 10
    with pytest.raises(jsonschema.ValidationError, match="idleTimeoutMinutes"):
        jsonschema.validate(misspelt, schema, jsonschema.Draft202012Validator)


# --- the same as cluster.yaml -------------------------------------------------------------------------------


def test_ray_reads_the_nodes_of_the_cluster_file_from_the_manifest() -> None:
    """With the code by which Ray's autoscaler reads what KubeRay has made of the manifest."""
    found = _derive_autoscaling_config_from_ray_cr({"metadata": {"name": "ghn", "namespace": "x"}, "spec": RAY_CLUSTER})
    for name in ("max_workers", "idle_timeout_minutes", "upscaling_speed"):
        assert found[name] == CLUSTER[name]
    ours, theirs = found["available_node_types"], CLUSTER["available_node_types"]
    for group, node_type in (("headgroup", "head"), ("gpu", "gpu")):
        assert {**ours[group]["resources"], **theirs[node_type]["resources"]} == ours[group]["resources"]
    workers = ours["gpu"]
    assert (workers["min_workers"], workers["max_workers"]) == (
        theirs["gpu"]["min_workers"],
        theirs["gpu"]["max_workers"],
    )


def test_stages_know_what_the_cluster_may_grow_to_while_its_head_is_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = RAY_CLUSTER["headGroupSpec"]["template"]["spec"]
    (mount,) = (mount for mount in head["containers"][0]["volumeMounts"] if mount["name"] == "limits")
    assert mount["subPath"] in LIMITS["data"]
    assert {"name": "limits", "configMap": {"name": LIMITS["metadata"]["name"]}} in head["volumes"]
    (tmp_path / Path(mount["mountPath"]).relative_to(HOME)).write_text(LIMITS["data"][mount["subPath"]])
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}])
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0})
    node_types = CLUSTER["available_node_types"]
    largest = CLUSTER["max_workers"]
    assert nodes_at_most() == 1 + largest
    assert capacity() == {
        "CPU": node_types["head"]["resources"]["CPU"] + largest * node_types["gpu"]["resources"]["CPU"],
        "GPU": largest * node_types["gpu"]["resources"]["GPU"],
    }


def test_the_image_has_the_ray_and_the_python_that_are_tested_here() -> None:
    (base,) = (arguments for name, arguments in instructions() if name == "FROM")
    assert base == CLUSTER["docker"]["head_image"]
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    assert base == f"rayproject/ray:{pinned('ray')}-{python}"
    assert RAY_CLUSTER["rayVersion"] == pinned("ray")


def test_all_pods_have_the_image_of_this_version() -> None:
    containers = [
        container
        for name, pod in pods().items()
        if name != "autoscaler"
        for container in [*pod["containers"], *pod.get("initContainers", [])]
    ]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    (image,) = {container["image"] for container in containers}
    assert image.endswith(f"/ghn:{version}")
    assert f"docker build --tag {image} ." in DOCKERFILE.read_text()
    assert f'image.version="{version}"' in DOCKERFILE.read_text()


def test_the_head_runs_the_submitted_script_with_settings_that_fit_on_the_cluster() -> None:
    python, option, module, *arguments = shlex.split(JOB["spec"]["entrypoint"])
    assert (python, option) == ("python", "-m")
    submitted = f"ray submit cluster.yaml {module.replace('.', '/')}.py -- "
    assert submitted in (ROOT / "cluster.yaml").read_text()
    options = submit._parser().parse_args(arguments)
    assert submit.storage_setting(ROOT, options.set_param).startswith("s3://")
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    for key, _, value in (item.partition("=") for item in options.set_param):
        set_leaf(values, tuple(key.split(".")), yaml.safe_load(value))
    workers = Params.model_validate(values).workers
    gpus = (
        WORKERS["maxReplicas"] * WORKERS["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    )
    assert workers.number * workers.gpus == gpus


def test_the_repository_is_where_the_submitted_script_expects_it() -> None:
    *_, folder = (arguments for name, arguments in instructions() if name == "WORKDIR")
    assert folder == REPOSITORY
    for name in ("ray-head", "results"):
        (mount,) = (mount for mount in pods()[name]["containers"][0]["volumeMounts"] if mount["name"] == "disk")
        assert mount["mountPath"] == REPOSITORY


def test_the_image_gets_the_files_that_the_nodes_of_the_cluster_file_get() -> None:
    """But for .git/config. For rsync and git a pattern without a slash before its end is meant at any depth."""
    left_out = {pattern.rstrip("/") for pattern in (*CLUSTER["rsync_exclude"], *read_patterns(ROOT / ".gitignore"))}
    expected = {pattern.strip("/") if "/" in pattern else f"**/{pattern}" for pattern in left_out}
    # One that another covers is not written twice.
    expected -= {pattern for pattern in expected if {f"**/{pattern}", f"{pattern}*"} & expected}
    assert set(read_patterns(ROOT / ".dockerignore")) == expected | {".git/config"}


def read_patterns(file: Path) -> list[str]:
    return [line for line in file.read_text().splitlines() if line and not line.startswith("#")]


# --- the image ----------------------------------------------------------------------------------------------


def test_a_change_of_code_installs_no_dependency_again() -> None:
    before_code: list[str] = []
    for name, arguments in instructions():
        if (name, arguments.split()[-2:]) == ("COPY", [".", "."]):
            break
        before_code.append(arguments)
    assert any('-c constraints.txt ".[pipeline]"' in arguments for arguments in before_code)
    copied = {file for arguments in before_code if "--chown" in arguments for file in arguments.split()[1:-1]}
    assert copied == {"constraints.txt", "pyproject.toml"}


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_image_is_built_where_there_is_a_docker_engine() -> None:
    try:
        engine = subprocess.run(["docker", "info"], capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("docker is not installed")
    if engine.returncode:
        pytest.skip(f"no Docker engine answers: {engine.stderr.strip().splitlines()[-1]}")
    tag = f"ghn-test:{os.getpid()}"
    subprocess.run(["docker", "build", "--tag", tag, str(ROOT)], check=True)
    try:
        program = (
            "import os, ray, torch, pipeline; print(os.getuid(), ray.__version__, torch.__version__, pipeline.__file__)"
        )
        checks = f"python -c '{program}' && ghn --help > /dev/null && gcc --version > /dev/null && git rev-parse HEAD"
        done = subprocess.run(
            ["docker", "run", "--rm", tag, "bash", "-c", checks], capture_output=True, text=True, check=True
        )
        uid, ray_version, torch_version, file, *_ = done.stdout.split()
        assert (uid, ray_version, torch_version.partition("+")[0]) == ("1000", pinned("ray"), pinned("torch"))
        assert file == f"{REPOSITORY}/pipeline/__init__.py"
    finally:
        subprocess.run(["docker", "image", "rm", "--force", tag], check=False)


# --- rights -------------------------------------------------------------------------------------------------


def test_nothing_runs_as_root_or_can_become_it() -> None:
    *_, user = (arguments for name, arguments in instructions() if name == "USER")
    for name, pod in pods().items():
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True, name
        assert f"{context['runAsUser']}:{context['runAsGroup']}" == user, name
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            rights = container["securityContext"]
            assert rights["allowPrivilegeEscalation"] is False and rights["capabilities"] == {"drop": ["ALL"]}, name
            assert not {"runAsUser", "runAsNonRoot", "privileged"} & set(rights), name


def test_only_the_head_has_a_token_of_kubernetes() -> None:
    """The head starts and stops workers with it. An intruder in another pod finds none."""
    with_token = {name for name, pod in pods().items() if pod.get("automountServiceAccountToken", True)}
    assert with_token == {"ray-head", "autoscaler"}


def test_ray_asks_for_a_token_and_no_file_has_a_credential() -> None:
    assert RAY_CLUSTER["authOptions"] == {"mode": "token"}
    assert not [document for document in DOCUMENTS if document["kind"] == "Secret"]
    for name, pod in pods().items():
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            assert "env" not in container, f"{name}: from a Secret, not here"
    for file in (DOCKERFILE, *MANIFESTS):
        text = file.read_text()
        assert hidden(text) == text, file
        for variable in (*SECRET_VARIABLES, "AWS_ACCESS_KEY_ID"):
            assert not re.search(rf"{variable}\s*[=:]\s*[^\s…]", text), file


# --- what the pods run --------------------------------------------------------------------------------------


def test_the_disk_of_the_head_keeps_results_and_gets_the_files_of_a_new_image(tmp_path: Path) -> None:
    (start,) = RAY_CLUSTER["headGroupSpec"]["template"]["spec"]["initContainers"]
    disk = start["volumeMounts"][0]["mountPath"]
    (script,) = start["args"]
    script = script.replace(REPOSITORY, str(tmp_path / "image")).replace(disk, str(tmp_path / "disk"))

    def run_with(files: dict[str, str]) -> None:
        subprocess.run(["rm", "-rf", tmp_path / "image"], check=True)
        for name, text in files.items():
            (tmp_path / "image" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "image" / name).write_text(text)
            (tmp_path / "image" / name).chmod(0o444)  # as the objects of git
        subprocess.run([*start["command"], script], check=True)

    copied = tmp_path / "disk" / "repository"
    run_with({"ghn/old.py": "1", "params.yaml": "first", ".git/objects/a": "a"})
    for name in ("results/train/metrics.json", ".dvc/cache/b", ".dvc/tmp/rwlock", ".git/index.lock", "mlflow.db"):
        (copied / name).parent.mkdir(parents=True, exist_ok=True)
        (copied / name).write_text("of the run")
    run_with({"ghn/new.py": "2", "params.yaml": "second", ".git/objects/a": "a"})
    assert (copied / "params.yaml").read_text() == "second"
    found = {str(path.relative_to(copied)) for path in copied.rglob("*") if path.is_file()}
    assert found == {
        "ghn/new.py",
        "params.yaml",
        ".git/objects/a",
        "results/train/metrics.json",
        ".dvc/cache/b",
        "mlflow.db",
    }


def test_a_worker_that_is_taken_away_is_drained_by_a_command_that_ray_has() -> None:
    *_, script = WORKERS["template"]["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    drain, wait = (shlex.split(part) for part in script.split("&&"))
    assert drain[:2] == ["ray", "drain-node"]
    options = drain_node.make_context("drain-node", drain[2:]).params
    assert options["reason"] == "DRAIN_NODE_REASON_PREEMPTION"
    grace = WORKERS["template"]["spec"]["terminationGracePeriodSeconds"]
    assert int(wait[1]) < options["deadline_remaining_seconds"] < grace


STAGE = """
import yaml
from pipeline.cluster.ray_cluster import capacity, nodes_at_most, ray_cluster, run_tasks

with ray_cluster():
    ((_, double),) = run_tasks(lambda number: 2 * number, [(21,)], description="double")
    print("storage:", yaml.safe_load(open("params.yaml"))["storage"], "nodes:", nodes_at_most(), "double:", double)
"""


@pytest.fixture
def head(tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Start a Ray that asks for a token, with a small repository in its home; return its address and environment."""
    repository = tmp_path / "repository"
    repository.mkdir()
    make_one_stage(repository, STAGE, {"storage": "folder", "workers": {"number": 1, "gpus": 0}})
    subprocess.run(["git", "add", "--all"], cwd=repository, check=True)
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    subprocess.run(["git", *identity, "commit", "--quiet", "-m", "As built"], cwd=repository, check=True)
    (repository / ".git" / "config").unlink()  # the image has none
    (tmp_path / "ray_bootstrap_config.yaml").write_text(LIMITS["data"]["ray_bootstrap_config.yaml"])

    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "OMP_NUM_THREADS")}
    environment |= {
        "HOME": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "of-this-test-and-no-other-0123456789",
        "RAY_USAGE_STATS_ENABLED": "0",
        "GIT_CONFIG_GLOBAL": os.devnull,
    }
    ports = [free_port() for _ in range(3)]
    start = ["ray", "start", "--head", "--block", "--num-cpus=1", f"--port={ports[0]}", f"--dashboard-port={ports[1]}"]
    # Its files lie where no other test looks for a Ray, and where the paths of its sockets are short.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as files:
        start += [f"--dashboard-agent-listen-port={ports[2]}", f"--temp-dir={files}"]
        with open(tmp_path / "ray.log", "wb") as log:
            process = subprocess.Popen(start, cwd=repository, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_for(ports[1])
            yield f"http://127.0.0.1:{ports[1]}", environment
        finally:
            process.terminate()
            process.wait(60)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(port: int, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < deadline, "Ray's dashboard does not answer"
            time.sleep(0.2)


@pytest.mark.slow
def test_the_job_runs_the_pipeline_on_a_head_that_asks_for_a_token(head: tuple[str, dict[str, str]]) -> None:
    """The line goes through the shell of the submitter, as KubeRay writes it, and through that of the head."""
    address, environment = head
    line = f"ray job submit --address {address} -- {JOB['spec']['entrypoint'].strip()} ;"
    done = subprocess.run(["bash", "-ce", line], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "storage: s3://bucket/prefix nodes: 5 double: 42" in done.stdout
    without = {name: value for name, value in environment.items() if name != "RAY_AUTH_TOKEN"}
    refused = subprocess.run(["bash", "-ce", line], env=without, capture_output=True, text=True, timeout=300)
    assert refused.returncode != 0 and "authentication token" in refused.stderr
