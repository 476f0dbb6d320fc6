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

MIB, GIB = 2**20, 2**30
LARGE_DISK = 64 * GIB
"""Nothing is taken before it is written."""

RAY = Path(sys.executable).with_name("ray")

links = count()
"""Numbers of links: one of a host that has ended may be there for a while."""


@dataclass
class Host:
    """A host.

    Attributes:
        name, address: its own, on the bridge.
        outside: the address of this machine, on the bridge.
        bridge: name of the bridge.
        shared: the folder that is `/mnt`.
        names: the file that is `/etc/hosts`.
        disk: bytes of its `/tmp`.
        environment: what its processes get beside the environment of this one.
    """

    name: str
    address: str
    outside: str
    bridge: str
    shared: Path
    names: Path
    disk: int
    environment: dict[str, str]

    def boot(self) -> None:
        """Make the host, and join it to the others."""
        flags = ("--net", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc")
        # The shell inside ends with this process, even where it is killed, and takes over orphans until then.
        command = ["unshare", *flags, "sh", "-c", "echo; cat; :"]
        self._outer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._outer.stdout is not None and self._outer.stdout.readline() == b"\n"  # it is inside
        (first,) = psutil.Process(self._outer.pid).children()
        self.pid = first.pid
        self.run("hostname", self.name)
        self.run("mount", "--bind", str(self.names), "/etc/hosts")
        self.run("mount", "--bind", str(self.shared), "/mnt")
        self.run("mount", "-t", "tmpfs", "-o", f"size={self.disk}", "tmpfs", "/tmp")
        self._link = f"gv{next(links)}n{os.getpid() % 10**6}"
        _ip("link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", str(self.pid))
        self.run("ip", "addr", "add", f"{self.address}/24", "dev", "eth0")
        for name in ("lo", "eth0"):
            self.run("ip", "link", "set", name, "up")
        _ip("link", "set", self._link, "master", self.bridge)
        self.plug()

    def die(self) -> None:
        """End the host with all its processes, of which none has time to say goodbye."""
        if self._outer.poll() is None:
            self.unplug()
            self._outer.kill()
        self._outer.communicate()

    def unplug(self) -> None:
        """Cut the link of the host: its processes go on, and reach each other."""
        _ip("link", "set", self._link, "down")

    def plug(self) -> None:
        """Join the link again."""
        _ip("link", "set", self._link, "up")

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

    def start_ray(self, head: Host, cpus: int = 1, gpus: int = 0) -> None:
        """Start a node of the cluster of a head; the head itself has to be started first.

        Args:
            cpus, gpus: how many Ray counts, whatever the host has.
        """
        port = "6379"
        of_head = ("--head", f"--port={port}", "--include-dashboard=false")
        place = of_head if head is self else (f"--address={head.address}:{port}",)
        options = (f"--num-cpus={cpus}", f"--num-gpus={gpus}", "--disable-usage-stats")
        self.run(str(RAY), "start", *place, f"--node-ip-address={self.address}", *options)

    def clock_ahead(self, seconds: int) -> dict[str, str]:
        """Return the variables by which the clock of a process is ahead."""
        library = self.shared / "clock_ahead.so"
        source = Path(__file__).with_name("clock_ahead.c")
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
        return {"LD_PRELOAD": f"/mnt/{library.name}", "CLOCK_AHEAD": str(seconds)}


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
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled", "HOME": "/tmp"}
    with ExitStack() as stack, NamedTemporaryFile("w", prefix="hosts-", dir=shared) as names:
        names.write("127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in addresses.items()))
        names.flush()
        _ip("link", "add", bridge, "type", "bridge")
        stack.callback(_ip, "link", "del", bridge)
        _ip("addr", "add", f"{network}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        made = []
        for position, (name, address) in enumerate(addresses.items()):
            size = (disk or {}).get(position, LARGE_DISK)
            place = (f"{network}.1", bridge, shared, Path(names.name))
            host = Host(name, address, *place, disk=size, environment=dict(environment))
            stack.callback(host.die)
            host.boot()
            made.append(host)
        yield made


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
