"""The parts of one machine's system that `dormouse up` keeps running, and their command lines.

A part that ends is started again, at once the first time and at growing intervals after that: none of them holds anything that the others
cannot do without for a second (docs/architecture.md). etcd alone is different: without it there is nothing to keep.
"""

import asyncio
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dormouse_core import storage
from dormouse_core.backoff import Backoff
from dormouse_core.errors import FailedPrecondition, InvalidArgument
from dormouse_kit import log, processes
from dormouse_kit.processes import Child, python

BACKOFF = Backoff(0.1, 5.0)
HEALTHY = 10.0  # seconds of running after which the next failure counts as the first


class Part:
    """One process that should run."""

    def __init__(self, name: str, command: Callable[[], Sequence[str]], cwd: Path | None = None) -> None:
        self.name = name
        self._cwd = cwd
        self._command = command
        self._child: Child | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        return self._child.pid if self._child else 0

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=self.name)

    async def stop(self, grace: float) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._child is not None:
            await self._child.stop(grace)
            self._child = None

    async def _run(self) -> None:
        failures = 0
        while True:
            began = time.monotonic()
            code = await self._once()
            failures = 1 if time.monotonic() - began > HEALTHY else failures + 1
            pause = BACKOFF.after(failures)
            log.warning("a part ended and is started again", part=self.name, code=code, again_in=pause)
            await asyncio.sleep(pause)

    async def _once(self) -> int | None:
        """How it ended; None: it could not be started, as where the machine has no process left to give."""
        try:
            self._child = await Child.start(self.name, self._command(), cwd=self._cwd)
        except OSError as error:
            log.warning("a part could not be started", part=self.name, error=str(error))
            return None
        log.event("started", part=self.name, pid=self._child.pid)
        return await self._child.wait()


@dataclass(frozen=True, slots=True)
class Ports:
    """Loopback ports of one run: what other users of the machine can reach. Everything else is a Unix socket."""

    gateway: int
    operator_metrics: int
    gateway_metrics: int


def choose(gateway: int) -> Ports:
    """FailedPrecondition: the gateway's port is taken. The others are whatever is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", gateway))
        except OSError as error:
            raise FailedPrecondition(
                f"port {gateway} on 127.0.0.1 cannot be used ({error.strerror}); choose another with --port, or 0 for any"
            ) from error
        chosen = probe.getsockname()[1]
        others = [socket.socket() for _ in range(2)]
        try:
            for other in others:
                other.bind(("127.0.0.1", 0))
            numbers = [other.getsockname()[1] for other in others]
        finally:
            for other in others:
                other.close()
    return Ports(chosen, *numbers)


CALLS = "calls.sock"
"""The gateway's socket for the calls that steps make."""
STORE, STORE_PEERS = "etcd:1", "etcd:2"
"""Names of etcd's sockets. etcd 3.4 takes no other form than host:port, and no path: it starts in their folder."""


def find_etcd(binary: str) -> str:
    """The path of the etcd to run. `binary`: the one that is named; empty: the one on PATH. InvalidArgument, FailedPrecondition: none."""
    if binary:
        if not processes.etcd_version(binary):
            raise InvalidArgument(f"--etcd {binary}: this is not etcd")
        return binary
    found = processes.find_etcd()
    if found is None:
        raise FailedPrecondition("no etcd was found: put etcd 3.4.22+ or 3.5.6+ on PATH, or name it with --etcd or --etcd-endpoints")
    if found.warning:
        log.warning(found.warning)
    return found.path


def etcd(binary: str, data: Path, quota: int) -> list[str]:
    """To be started in the sockets' folder. On a port of the loopback every user of the machine could read and delete what is stored, and a
    web page could too, by the JSON gateway, which workers' supervisors use."""
    client, peer = f"unix://{STORE}", f"unix://{STORE_PEERS}"
    return [
        os.path.abspath(binary),
        *("--name", "dormouse", "--data-dir", os.fspath(data), "--logger", "zap", "--log-level", "error"),
        *("--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer),
        *("--initial-advertise-peer-urls", peer, "--initial-cluster", f"dormouse={peer}"),
        # A single member waits one election timeout at every start, for others that do not exist.
        *("--heartbeat-interval", "20", "--election-timeout", "100"),
        # For when no operator runs: the operator drops history sooner.
        *("--auto-compaction-mode", "periodic", "--auto-compaction-retention", f"{storage.retention(quota)}s"),
        *("--quota-backend-bytes", str(quota)),
    ]


def operator(
    store: Sequence[str], quota: int, sockets: Path, ports: Ports, directory: Path, installation: str, removal_wait: str
) -> list[str]:
    return [
        *(*python("dormouse_operator"), "--local", *_store(store), "--installation", installation),
        *("--store-quota", str(quota)),
        *("--control", f"unix:{sockets / 'control.sock'}", "--provider", f"unix:{sockets / 'provider.sock'}"),
        *("--gateway", f"unix:{sockets / CALLS}"),
        *("--listen", f"unix:{sockets / 'agents.sock'}", "--metrics", str(ports.operator_metrics), "--model-root", os.fspath(directory)),
        *(("--removal-wait", removal_wait) if removal_wait else ()),
    ]


def gateway(module: str, store: Sequence[str], sockets: Path, ports: Ports, installation: str, max_message: int) -> list[str]:
    """The agent (`dormouse_gateway`) or Envoy (`dormouse_gateway.envoy`): the same options, so that both agree."""
    return [
        *(*python(module), *_store(store), "--installation", installation, "--name", "local"),
        *("--listen", f"127.0.0.1:{ports.gateway}", "--listen-relay", f"unix:{sockets / 'relay.sock'}"),
        *("--listen-calls", f"unix:{sockets / CALLS}"),
        *("--xds", f"unix:{sockets / 'xds.sock'}", "--admin", os.fspath(sockets / "envoy.sock"), "--metrics", str(ports.gateway_metrics)),
        *("--own-name", "localhost", "--own-name", "127.0.0.1", "--drain-seconds", "3", "--max-message-bytes", str(max_message)),
    ]


def _store(endpoints: Sequence[str]) -> list[str]:
    return [word for endpoint in endpoints for word in ("--store", endpoint)]
