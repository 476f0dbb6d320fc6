"""Hosts of a cluster on one machine: Linux namespaces with addresses, processes, folders and names of their own.

Hosts are joined by a bridge and know each other's names. Each has its own `/tmp`, where Ray keeps its sockets and logs.
`/mnt` is a folder that all of them share, and they see the rest of this machine's files, the code among them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import NamedTemporaryFile

import psutil
from small_settings import ROOT

GIB = 2**30
LARGE_DISK = 64 * GIB
"""Nothing is taken before it is written."""

RAY = Path(sys.executable).with_name("ray")

links = count()
"""Numbers of links: one of a host that has ended may be there for a while."""


@dataclass(frozen=True)
class Host:
    """A host.

    Attributes:
        address: its own, on the bridge.
        pid: of its first process, with which all others end.
        environment: what its processes get beside the environment of this one.
    """

    address: str
    pid: int
    environment: dict[str, str]

    def command(self, *arguments: str) -> list[str]:
        """Return the command that runs another one on the host."""
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        return [
            "nsenter",
            f"--target={self.pid}",
            "--net",
            "--mount",
            "--pid",
            "--uts",
            "env",
            "--chdir=/mnt",
            *variables,
            *arguments,
        ]

    def run(self, *arguments: str, fails: bool = False) -> str:
        """Return what a command prints on the host, in the shared folder."""
        done = subprocess.run(self.command(*arguments), capture_output=True, text=True)
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stdout + done.stderr

    def start_ray(self, head: Host) -> None:
        """Start a node of one core, of the cluster of a head; the head itself has to be started first."""
        port = "6379"
        of_head = ("--head", f"--port={port}", "--include-dashboard=false")
        place = of_head if head is self else (f"--address={head.address}:{port}",)
        options = ("--num-cpus=1", "--disable-usage-stats")
        self.run(str(RAY), "start", *place, f"--node-ip-address={self.address}", *options)


def why_not(folder: Path) -> str | None:
    """Return why this machine cannot have hosts that reach each other; None: it can."""
    if missing := [name for name in ("ip", "unshare", "nsenter", "hostname") if shutil.which(name) is None]:
        return f"hosts need {', '.join(missing)}"
    try:
        with hosts(2, folder) as (one, other):
            listen = (
                f"import socket; s = socket.create_server(('{other.address}', 5000)); s.settimeout(10); "
                "print(flush=True); s.accept()"
            )
            listener = subprocess.Popen(other.command(sys.executable, "-c", listen), stdout=subprocess.PIPE)
            with listener:
                assert listener.stdout is not None and listener.stdout.readline()
                one.run(sys.executable, "-c", f"import socket; socket.create_connection(('{other.address}', 5000), 5)")
    except (AssertionError, OSError, subprocess.CalledProcessError, psutil.Error) as error:
        return f"hosts need the right to make namespaces and a bridge, which root has: {str(error)[-200:]}"
    return None


@contextmanager
def hosts(number: int, shared: Path, disk: Mapping[int, int] | None = None) -> Iterator[list[Host]]:
    """Make hosts that reach each other, for the time of the block.

    Args:
        shared: the folder that is `/mnt` on all of them.
        disk: bytes of the `/tmp` of some hosts, by number from 0.
    """
    own = os.getpid()
    bridge, network = f"gb{own % 10**8}", f"10.77.{own % 256}"
    addresses = {f"host{position}": f"{network}.{position + 10}" for position in range(number)}
    with ExitStack() as stack, NamedTemporaryFile("w", prefix="hosts-", dir=shared) as names:
        names.write("127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in addresses.items()))
        names.flush()
        _ip("link", "add", bridge, "type", "bridge")
        stack.callback(_ip, "link", "del", bridge)
        _ip("addr", "add", f"{network}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        made = []
        for position, (name, address) in enumerate(addresses.items()):
            host = stack.enter_context(_host(address))
            host.run("hostname", name)
            host.run("mount", "--bind", names.name, "/etc/hosts")
            host.run("mount", "--bind", str(shared), "/mnt")
            size = (disk or {}).get(position, LARGE_DISK)
            host.run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", "/tmp")
            _join(host, f"gv{next(links)}n{own % 10**6}", bridge)
            made.append(host)
        yield made


@contextmanager
def _host(address: str) -> Iterator[Host]:
    """Make a host that nothing reaches yet."""
    flags = ("--net", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc")
    outside = subprocess.Popen(["unshare", *flags, "sh", "-c", "echo; exec sleep infinity"], stdout=subprocess.PIPE)
    try:
        assert outside.stdout is not None and outside.stdout.readline() == b"\n"  # it is inside
        (first,) = psutil.Process(outside.pid).children()
        environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled", "HOME": "/tmp"}
        yield Host(address, first.pid, environment)
    finally:
        outside.kill()
        outside.wait()


def _join(host: Host, link: str, bridge: str) -> None:
    """Join a host to the others."""
    _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(host.pid))
    _ip("link", "set", link, "master", bridge, "up")
    host.run("ip", "addr", "add", f"{host.address}/24", "dev", "eth0")
    for name in ("lo", "eth0"):
        host.run("ip", "link", "set", name, "up")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
