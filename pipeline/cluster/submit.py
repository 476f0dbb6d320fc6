"""Run the pipeline on the head node of a Ray cluster.

    ray up cluster.yaml
    ray submit cluster.yaml pipeline/submit.py -- -S storage=s3://bucket/prefix -S meta_batch=16

`ray submit` copies this file to the home directory of the head node and runs it there with the arguments
after `--` (through a shell: quote what a shell would change). Jobs of Kubernetes and Slurm run it as a module,
`python -m pipeline.submit` (kubernetes/rayjob.yaml, slurm/pipeline.sbatch).

It changes into the repository, joins the cluster, checks that all nodes can reach the storage, and becomes
`dvc exp run -S ...`, or `dvc repro` when no setting is given: output, Ctrl-C and exit status are those of DVC.
Settings given with -S stay in the head's params.yaml until the next `ray up`.

DVC needs git. `ray up` sends `.git` along, so an experiment on the cluster knows its commit; where there is
none (the code came as an archive), the files as they arrived become the first commit of a new repository on
the head.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import yaml

from pipeline.cluster.doctor import storage_problems
from pipeline.cluster.ray_cluster import ADDRESS_VARIABLE, alive_nodes, nodes_at_most, ray_cluster, wait_for_nodes
from pipeline.errors import Terminated, UserError
from pipeline.storage.paths import is_in_bucket

REPOSITORY = "~/repository"
"""Where cluster.yaml's `file_mounts` put the repository on the head node."""

RESULTS = "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the pipeline with the arguments of the command line; return the exit status if it could not start."""
    options = _parser().parse_args(arguments)
    try:
        submit(
            Path(options.repository).expanduser(),
            options.set_param,
            options.stages,
            options.mlflow_tracking_uri,
            options.nodes,
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    except Terminated as ending:
        print(ending, file=sys.stderr)
        return 143


def submit(
    repository: Path,
    overrides: Sequence[str],
    stages: Sequence[str],
    mlflow_tracking_uri: str | None,
    least_nodes: int = 1,
) -> NoReturn:
    """Replace this process by DVC, which runs `stages` (none: all) with the `overrides` ("key=value").

    Args:
        least_nodes: how many nodes the cluster has to have before that.

    Raises:
        UserError: `repository` has no pipeline, no cluster answers, nodes do not come, they do not share the storage,
            or git fails.
    """
    if not (repository / "dvc.yaml").exists():
        raise UserError(
            f"{repository} has no dvc.yaml: it must be the repository that cluster.yaml sends to the head\n"
            "(give another place with --repository)"
        )
    os.chdir(repository)
    os.environ.setdefault(ADDRESS_VARIABLE, "auto")
    with ray_cluster():
        wait_for_nodes(least_nodes)
        nodes = nodes_at_most()
        _require_shared_storage(storage_setting(repository, overrides), nodes)
    _require_git(repository)
    print(f"running on a cluster of up to {nodes} nodes", flush=True)
    if repository == Path(REPOSITORY).expanduser() and "KUBERNETES_SERVICE_HOST" not in os.environ:
        print("fetch what it leaves with", flush=True)
        print(f"ray rsync-down cluster.yaml {repository / RESULTS}/ {RESULTS}/", flush=True)
    command = dvc_command(overrides, stages)
    os.execve(command[0], command, stage_environment(os.environ, mlflow_tracking_uri))


def dvc_command(overrides: Sequence[str], stages: Sequence[str]) -> list[str]:
    """Return the command that runs `stages`: an experiment if settings are overridden, else a plain reproduction."""
    dvc = [sys.executable, "-m", "dvc"]
    if not overrides:
        return [*dvc, "repro", *stages]
    return [*dvc, "exp", "run", *(part for item in overrides for part in ("-S", item)), *stages]


def stage_environment(environment: Mapping[str, str], mlflow_tracking_uri: str | None) -> dict[str, str]:
    """Return the environment of the stages: this process's, with its Python, all threads and the tracking server."""
    # The cluster launcher's shell sets these for its own use; one thread would be a slow driver.
    result = {name: value for name, value in environment.items() if name not in ("OMP_NUM_THREADS", "PYTHONWARNINGS")}
    result["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', os.defpath)}"
    result["DVC_NO_ANALYTICS"] = "1"
    if mlflow_tracking_uri:
        result["MLFLOW_TRACKING_URI"] = mlflow_tracking_uri
    return result


def storage_setting(repository: Path, overrides: Sequence[str]) -> str:
    """Return the setting `storage` of the stages: the last override, else that of params.yaml."""
    for item in reversed(overrides):
        key, _, value = item.partition("=")
        if key.removeprefix("params.yaml:").lstrip("+") == "storage":
            return value.strip("'\"")
    path = repository / "params.yaml"
    return str((yaml.safe_load(path.read_text()) or {}).get("storage", "")) if path.exists() else ""


def _require_shared_storage(storage: str, nodes: int) -> None:
    """Raise UserError unless the storage is a bucket, or a folder that all nodes which are there now share."""
    if is_in_bucket(storage) or nodes == 1:
        return
    problems = storage_problems(storage)
    if problems or len(alive_nodes()) == 1:  # of nodes that come later one cannot ask
        reason = problems[0] if problems else f"the cluster may grow to {nodes} nodes"
        raise UserError(
            f"storage = {storage!r} is a folder: {reason}\n"
            "give a place that all nodes share: ray submit cluster.yaml pipeline/submit.py -- "
            "-S storage=s3://bucket/prefix"
        )


def _require_git(repository: Path) -> None:
    if (repository / ".git").exists():
        check = _git("rev-parse", "--git-dir")
        if check.returncode:
            raise UserError(
                f"{repository}/.git is not usable: {_first_line(check)}\n"
                "(a linked worktree cannot be synchronised: run `ray up` from a full clone)"
            )
        return
    identity = ("-c", "user.name=cluster", "-c", "user.email=cluster@localhost")
    for command in (
        ("init", "--quiet"),
        ("add", "--all"),
        (*identity, "commit", "--quiet", "-m", "As synchronised"),
    ):
        done = _git(*command)
        if done.returncode:
            raise UserError(f"git {' '.join(command)} in {repository}: {_first_line(done)}")


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], capture_output=True, text=True)


def _first_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return what a program said first; git says on stdout that there is nothing to commit."""
    return (done.stderr or done.stdout).strip().partition("\n")[0]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Run the pipeline on the cluster whose head node this is.")
    parser.add_argument("-S", "--set-param", action="append", default=[], metavar="KEY=VALUE", help="as in dvc exp run")
    parser.add_argument(
        "--mlflow-tracking-uri", metavar="URI", help="server to log to (default: mlflow.db on the head)"
    )
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="wait until so many have joined (default: 1)")
    parser.add_argument("--repository", default=REPOSITORY, metavar="FOLDER", help="the repository on the head node")
    parser.add_argument("stages", nargs="*", help="stages to run with all that they need (default: all)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
