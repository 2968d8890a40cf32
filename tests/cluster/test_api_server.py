"""An API server that restarts, stands still, is not heard or breaks off: calls go on meanwhile, and everything is handled afterwards."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
from dormouse_testing.cluster import control_plane
from dormouse_testing.cluster.between import between
from dormouse_testing.cluster.client import eventually
from dormouse_testing.cluster.functions import SYSTEM, Dormouse, echo
from dormouse_testing.cluster.laptops import Tokens, laptop
from dormouse_testing.cluster.layout import API_PORT, HOST_IP, Timing
from dormouse_testing.cluster.operators import handled, operators, without_operator
from dormouse_testing.cluster.processes import alive

pytestmark = pytest.mark.usefixtures("unharmed")


@contextlib.contextmanager
def black_hole(dormouse: Dormouse, pod: str) -> Iterator[None]:
    """Packets between the pod and the API server are dropped, both ways; no reset, no answer."""
    assert dormouse.cluster.layout is not None
    address = dormouse.cluster.get("pod", pod, SYSTEM)["status"]["podIP"]
    table = [*dormouse.cluster.layout.node(1).inside, "iptables", "-w", "-t", "mangle"]
    rules = [
        ["FORWARD", "-p", "tcp", "-s", address, "-d", HOST_IP, "--dport", str(API_PORT), "-j", "DROP"],
        ["FORWARD", "-p", "tcp", "-d", address, "-s", HOST_IP, "--sport", str(API_PORT), "-j", "DROP"],
    ]
    for rule in rules:
        subprocess.run([*table, "-I", *rule], check=True)
    try:
        yield
    finally:
        for rule in rules:
            subprocess.run([*table, "-D", *rule], check=True)


@contextlib.contextmanager
def frozen_api_server(dormouse: Dormouse) -> Iterator[None]:
    """It stands still: connections open, the kernel acknowledges, nobody answers."""
    assert dormouse.cluster.layout is not None
    pid = alive(dormouse.cluster.layout.run / "host-apiserver.pid")
    assert pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def stepping(dormouse: Dormouse) -> Iterator[None]:
    """Steps of the steady function all the while, each answered in time and counted once."""
    count, ended = 0, False
    session = str(time.monotonic_ns())

    def steps() -> int:
        nonlocal count
        while not ended:
            count += 1
            assert dormouse.call("steady", 1, session=session, timeout=15) == count
            time.sleep(0.1)
        return count

    running: Future[int] = dormouse.pool.submit(steps)
    try:
        yield
    finally:
        ended = True
        assert running.result() > 5


def test_changes_are_handled_after_the_api_server_restarted_three_times(own: Dormouse) -> None:
    """5.O3. Calls go on meanwhile; then create, change and delete are handled within a minute, by the same operator. (The pods may take
    longer: scheduler, controllers and kubelet back off too, up to half a minute.)"""
    assert own.cluster.layout is not None
    for away in (0.0, 1.0, 4.0):
        restart = own.pool.submit(control_plane.restart_api_server, own.cluster.layout, Timing(), away=away)
        session, count = str(away), 0
        while not restart.done():
            count += 1
            assert own.call("steady", 1, session=session, timeout=15) == count
            time.sleep(0.05)
        restart.result()
    own.apply(echo("after"))
    eventually("it is taken", lambda: own.status("after").get("replicas") == 1, 60)
    own.patch("after", {"replicas": 2})
    eventually("it is changed", lambda: own.status("after").get("replicas") == 2, 60)
    own.ready("after", 2, 120)
    own.delete("after")
    eventually("it is gone", lambda: not [key for key in own.stored() if key.endswith("/after")], 60)


EVENT_AGE = 'dormouse_event_age_seconds{watch="kubernetes-functions"}'


@pytest.mark.parametrize("seconds", [20, pytest.param(60, marks=pytest.mark.slow)])
def test_an_api_server_in_a_black_hole(own: Dormouse, seconds: int) -> None:
    """5.O3. The data path goes on; how long the operator has heard nothing is a metric; what happened meanwhile and what comes after is
    handled within a minute, by the same process."""
    [operator] = operators(own)
    with black_hole(own, operator.name), stepping(own):
        own.apply(echo("meanwhile"))
        time.sleep(seconds)
        assert operator.metric(EVENT_AGE) > seconds - 10
        assert operator.metric("dormouse_kubernetes_list_age_seconds") > 0
        assert own.status("meanwhile")["observedGeneration"] == -1, "as the definition has it begin"
    began = time.monotonic()
    eventually("what was made meanwhile is taken", lambda: own.status("meanwhile").get("replicas") == 1, 60)
    print(f"handled {time.monotonic() - began:.1f} s after {seconds} s of a black hole")
    handled(own, "afterwards", 60)
    own.delete("meanwhile")
    assert operator.metric(EVENT_AGE) < 60


@pytest.mark.parametrize("seconds", [10, pytest.param(60, marks=pytest.mark.slow)])
def test_an_api_server_that_stands_still(own: Dormouse, seconds: int) -> None:
    with frozen_api_server(own), stepping(own):
        time.sleep(seconds)
    eventually("it answers", lambda: own.cluster.kubectl("get", "--raw", "/readyz") == "ok")
    handled(own, "thawed", 60)


@pytest.mark.slow
def test_connections_that_are_reset_during_the_first_list(own: Dormouse, tmp_path: Path) -> None:
    """5.O3. An operator that starts meanwhile does not end, and takes up its work when it can read a list to its end."""
    assert own.cluster.layout is not None
    with between(own.cluster.layout) as api, without_operator(own):
        tokens = Tokens(own.cluster, tmp_path / "access", api.url)
        tokens.renew()
        api.resets = True
        with laptop(own.cluster, tmp_path / "laptop", tokens.kubeconfig) as alone:
            eventually("many answers were reset", lambda: api.reset > 20, 60)
            assert alone.health()[0] == 200
            own.apply(echo("during"))
            api.resets = False
            eventually("it is taken", lambda: own.status("during").get("replicas") == 1, 60)
            own.delete("during")
            handled(own, "after-resets", 60, by=alone)
            assert alone.leads
