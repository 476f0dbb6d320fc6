"""What `ray up` and `ray submit` need: hosts that let in SSH, with a home and a Python environment of their own.

A host is what `cluster.yaml` starts on AWS: the home of its user is `/home/ray`, and the Python there has the packages
of constraints.txt, but not this project. An overlay over the environment of the tests makes that: what a host installs
is seen by that host alone.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flaky_bucket import FlakyBucket
from healthy_server import wait_until_healthy
from namespaces import Host

PROGRAMS = ("sshd", "ssh", "ssh-keygen", "rsync", "git")
PROGRAM_FOLDERS = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"

ENVIRONMENT = Path(sys.prefix)
OWN_ENVIRONMENT = f"""
    set -e
    mount -t tmpfs tmpfs /media
    mkdir /media/upper /media/work
    mount -t overlay overlay -o lowerdir={ENVIRONMENT},upperdir=/media/upper,workdir=/media/work {ENVIRONMENT}
"""
"""Lets a host write to the environment without a change of the one below."""

HOME = "/home/ray"
KEY = "key.pem"
MLFLOW_PORT = 5000
IDLE_MINUTES = 0.5

OF_AWS = ("docker", "head_node_type", "available_node_types", "upscaling_speed")
"""Parts of cluster.yaml that choose machines and images on AWS; the others are for hosts of any kind."""

SECRETS = {"AWS_ACCESS_KEY_ID": "public-half", "AWS_SECRET_ACCESS_KEY": "half-that-nobody-may-read"}


def why_no_launcher() -> str | None:
    """Return why the launcher cannot be used on this machine; None: it can."""
    if missing := [name for name in PROGRAMS if shutil.which(name, path=PROGRAM_FOLDERS) is None]:
        return f"the cluster launcher needs {', '.join(missing)}"
    tried = subprocess.run(["unshare", "--mount", "sh", "-c", OWN_ENVIRONMENT], capture_output=True, text=True)
    return f"hosts need overlays: {tried.stderr[-200:]}" if tried.returncode else None


def of_hosts(configuration: dict[str, Any], head: Host, workers: Sequence[Host]) -> dict[str, Any]:
    """Return the settings of a cluster on given hosts with the mounts and commands of one on AWS."""
    provider = {
        "type": "local",
        "head_ip": head.address,
        "worker_ips": [worker.address for worker in workers],
    }
    return {name: part for name, part in configuration.items() if name not in OF_AWS} | {
        "provider": provider,
        "auth": {"ssh_user": "root", "ssh_private_key": f"/mnt/{KEY}"},
        "min_workers": 0,
        "max_workers": len(workers),
        "idle_timeout_minutes": IDLE_MINUTES,
    }


def let_in_ssh(host: Host, shared: Path, **variables: str) -> None:
    """Give a host a home of its own, an environment for Python, and an SSH server that knows the key of the laptop.

    Args:
        shared: the folder that is `/mnt` on all hosts; it holds the key.
        variables: what all shells on the host have, like those of an image.
    """
    if not (shared / KEY).exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(shared / KEY)], check=True)
    exported = variables | {
        "PATH": f"{ENVIRONMENT / 'bin'}:{PROGRAM_FOLDERS}",
        "PIP_NO_BUILD_ISOLATION": "0",  # what builds the project is there, and hosts reach no package index
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # five processes more
    }
    profile = shared / f"bashrc-{host.address}"
    profile.write_text("".join(f"export {name}={shlex.quote(value)}\n" for name, value in exported.items()))
    (shared / "passwd").write_text(f"root:x:0:0:root:{HOME}:/bin/bash\nsshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n")
    server = {
        "HostKey": "/run/sshd/key",
        "PidFile": "/run/sshd/pid",
        "ListenAddress": host.address,
        "UsePAM": "no",
        "StrictModes": "no",  # the folders above the key belong to others here
        "PasswordAuthentication": "no",
    }
    options = " ".join(f"-o {name}={value}" for name, value in server.items())
    script = f"""{OWN_ENVIRONMENT}
        mount -t tmpfs tmpfs /home
        mount -t tmpfs tmpfs /run
        mkdir -p /run/sshd {HOME}/.ssh
        mount --bind /mnt/passwd /etc/passwd
        cp /mnt/{profile.name} {HOME}/.bashrc
        cp /mnt/{KEY}.pub {HOME}/.ssh/authorized_keys
        ssh-keygen -q -t ed25519 -N '' -f /run/sshd/key
        /usr/sbin/sshd -f /dev/null {options}
    """
    host.run("sh", "-c", script)


@dataclass(frozen=True)
class LaunchedCluster:
    """A cluster that `ray up` has started from a laptop.

    Attributes:
        laptop: the host where the repository is, as a user has it.
        nodes: the others; the head is the first.
        repository: that folder, as this machine sees it.
        bucket: the object store of the cluster, on this machine.
    """

    laptop: Host
    nodes: list[Host]
    repository: Path
    bucket: FlakyBucket

    def type(self, command: str, *, fails: bool = False) -> str:
        """Return what a command prints on the laptop, in the repository."""
        variables = {
            "PATH": f"{ENVIRONMENT / 'bin'}:{PROGRAM_FOLDERS}",
            # With the autoscaler that Ray 2.60 has by default, the last of the given hosts is never started.
            "RAY_UP_enable_autoscaler_v2": "0",
        }
        exported = "".join(f"export {name}={value}; " for name, value in variables.items())
        return self.laptop.run("bash", "-c", f"{exported}cd /mnt/{self.repository.name}; {command}", fails=fails)


def on_node(host: Host, command: str) -> list[str]:
    """Return the command that runs another one on a node, in its home, with the variables of its shells."""
    return host.command("bash", "-c", f"export HOME={HOME}; cd; source ~/.bashrc; {command}")


@contextmanager
def mlflow_server(
    host: Host, artifacts: str, folder: str = HOME, shell: Callable[[Host, str], list[str]] = on_node
) -> Iterator[str]:
    """Start an MLflow server on a host; yield its address.

    Args:
        artifacts: where its files are, an address in a bucket.
        folder: where its database is.
        shell: gives the command that runs another one on the host.
    """
    options = {
        "host": "0.0.0.0",
        "port": MLFLOW_PORT,
        "workers": 1,
        "allowed-hosts": f"{host.address}:{MLFLOW_PORT}",
        "backend-store-uri": f"sqlite:///{folder}/mlflow.db",
        "artifacts-destination": artifacts,
    }
    command = " ".join(["exec mlflow server", *(f"--{name}={value}" for name, value in options.items())])
    server = subprocess.Popen(shell(host, f"{command} > /tmp/mlflow.log 2>&1"))
    try:
        address = f"http://{host.address}:{MLFLOW_PORT}"
        wait_until_healthy(address, server, log=f"/tmp/mlflow.log on {host.name}")
        yield address
    finally:
        server.kill()
        server.wait()
