"""Alarms (`ctx.alarm`), on one machine: real gateway, workers, leader and store."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from conftest import unavailable
from dormouse.client import Answer, Client
from dormouse_core.errors import Code, DormouseError
from dormouse_testing.alarm_system import alarm_system
from dormouse_testing.calling_system import told
from dormouse_testing.streams_system import kill_an_owner
from dormouse_testing.system import System
from dormouse_testing.up import missing


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    if reason := missing():
        unavailable(reason)
    with alarm_system(tmp_path_factory.mktemp("alarms")) as started:
        yield started


@pytest.fixture(scope="module")
def client(system: System) -> Iterator[Client]:
    with Client(system.address) as made:
        yield made


def ask(client: Client, session: str, what: str = "", x: float = 0, function: str = "claim", **more: Any) -> Answer:
    given = {"x": np.array([x], np.float32)}
    if what:
        given["what"] = np.array([what.encode()], dtype=object)
    return client.infer(function, given, session=session, timeout=60.0, **more)


def rung(system: System, session: str) -> list[list[str]]:
    """The runs of its alarms' steps: session, step, alarm, key, time, what."""
    lines = [line.split(" ") for line in told(system)]
    return [line for line in lines if line[0] == session and len(line) > 3 and line[2] != "None"]


def total(client: Client, session: str, function: str = "claim") -> tuple[float, int]:
    answer = ask(client, session, function=function)
    return float(answer.outputs["y"][0]), answer.step


def asleep(system: System, name: str = "claim") -> None:
    system.wait(name, lambda status: status["phase"] == "Asleep")


def refused(call: Callable[[], object]) -> DormouseError:
    with pytest.raises(DormouseError) as error:
        call()
    return error.value


def test_an_alarm_wakes_its_function_and_runs_once(system: System, client: Client) -> None:
    began = time.time()
    ask(client, "sleeper", "remind|15|10|", x=1)
    asleep(system)
    assert time.time() < began + 15, "it slept before the alarm was due"
    system.until(lambda: rung(system, "sleeper"))
    ((_, step, name, key, at, _),) = rung(system, "sleeper")
    assert (step, name) == ("2", "remind")
    assert began + 15 <= float(at) < began + 15 + 30, system.log[-2000:]
    print(f"late by {float(at) - began - 15:.2f} s from zero, key {key}")
    assert total(client, "sleeper") == (11, 3)
    asleep(system)
    assert total(client, "sleeper") == (11, 4)
    assert len(rung(system, "sleeper")) == 1


def test_an_alarms_calls_run_once_though_its_worker_dies_before_its_commit(system: System, client: Client) -> None:
    hold = system.folder / "handlers" / ".hold"
    hold.touch()
    try:
        ask(client, "dies", "charge|0.5|7|call")
        system.until(lambda: "dies called" in told(system))
        kill_an_owner(system, "claim")
        hold.unlink()
        system.until(lambda: told(system).count("dies called") == 2)
        system.until(lambda: total(client, "dies")[0] == 7)
        assert len({line[3] for line in rung(system, "dies")}) == 1, "the same step, under the same key"
        assert total(client, "dies", "ledger") == (7, 2), "and its call ran once"
    finally:
        hold.unlink(missing_ok=True)


def test_one_of_a_name_replaces_the_other_and_one_is_cancelled(system: System, client: Client) -> None:
    ask(client, "names", "a|2|1|")
    ask(client, "names", "a|0.2|10|")
    ask(client, "names", "b|1|100|")
    ask(client, "names", "b||0|")
    time.sleep(3)
    assert total(client, "names") == (10, 6)


@pytest.mark.parametrize(
    ("call", "code", "text"),
    [
        ("ctx.alarm(1e30, {'x': inputs['x']}, 'a')", Code.INVALID_ARGUMENT, "alarm: at: "),
        ("ctx.alarm(float('nan'), {'x': inputs['x']}, 'a')", Code.INVALID_ARGUMENT, "alarm: at: nan found"),
        ("ctx.alarm('tomorrow', {'x': inputs['x']}, 'a')", Code.INVALID_ARGUMENT, "alarm: at: str found"),
        ("ctx.alarm(datetime.now(), {'x': inputs['x']}, 'a')", Code.INVALID_ARGUMENT, "alarm: at: a time without a zone found"),
        ("ctx.alarm(time.time() + 11 * 366 * 86400, {'x': inputs['x']}, 'a')", Code.INVALID_ARGUMENT, "days ahead found, at most 3653"),
        ("ctx.alarm(time.time(), {'x': inputs['x']}, '')", Code.INVALID_ARGUMENT, "alarm: name: '' found"),
        ("ctx.alarm(time.time(), {'x': np.ones(2, np.float32)}, 'a')", Code.INVALID_ARGUMENT, "alarm: inputs['x'].shape: [2] found"),
        ("ctx.alarm(time.time(), {'x': np.ones(1)}, 'a')", Code.INVALID_ARGUMENT, "alarm: inputs['x'].datatype: 'FP64' found"),
        ("ctx.alarm(time.time(), {'z': inputs['x']}, 'a')", Code.INVALID_ARGUMENT, "alarm: inputs: 'z' is not an input"),
        ("ctx.alarm(time.time(), {}, 'a')", Code.INVALID_ARGUMENT, "alarm: inputs: 'x' missing"),
        ("ctx.alarm(time.time(), None, 'a')", Code.INVALID_ARGUMENT, "alarm: inputs: NoneType found"),
        (
            "[ctx.alarm(time.time() + 9e5, {'x': inputs['x']}, f'a{n}') for n in range(10_000)]",
            Code.RESOURCE_EXHAUSTED,
            "the session would have 10000 alarms, at most 100 are allowed",
        ),
        (
            "ctx.alarm(time.time(), {'x': inputs['x'], 'what': np.array([b'x' * 70_000], dtype=object)}, 'a')",
            Code.RESOURCE_EXHAUSTED,
            "alarm: inputs: ",
        ),
        ("ctx.cancel_alarm(7)", Code.INVALID_ARGUMENT, "alarm: name: int found"),
    ],
)
def test_what_cannot_be_had_is_refused_with_the_field_and_changes_nothing(client: Client, call: str, code: Code, text: str) -> None:
    error = refused(lambda: ask(client, "wrong", call, function="wrong"))
    assert (error.code, text in error.message) == (code, True), error.message


def test_alarms_are_listed_and_cancelled_by_name_and_one_that_fails_says_why(system: System, client: Client) -> None:
    ask(client, "told", "fails|0|1|raise")
    ask(client, "told", "later|90000|10|")
    system.until(lambda: "not today" in system.command("sessions", "claim", "/s:told"))
    asleep(system)
    shown = system.command("sessions", "claim", "/s:told")
    assert "alarm fails: was due " in shown, shown
    assert "(UNAVAILABLE: not today)" in shown, shown
    assert "alarm later: due " in shown, shown
    for name in ("later", "fails"):
        assert f"alarm {name} cancelled" in system.command("sessions", "claim", "/s:told", "--cancel-alarm", name)
    assert "alarm" not in system.command("sessions", "claim", "/s:told")
    assert 'has no alarm "later"' in system.run("sessions", "claim", "/s:told", "--cancel-alarm", "later").stderr
    assert "a SESSION is required" in system.run("sessions", "claim", "--cancel-alarm", "later").stderr
    runs = len(rung(system, "told"))
    time.sleep(3)
    assert len(rung(system, "told")) == runs


def test_a_function_that_keeps_its_sessions_keeps_their_alarms_and_a_stopped_one_runs_them_when_it_is_started(
    system: System, client: Client
) -> None:
    system.command("scale", "kept", "1")
    ask(client, "heir", "a|2|10|", x=1, function="kept")
    system.command("delete", "kept")
    system.until(lambda: system.run("get", "kept").returncode)
    time.sleep(2)
    system.command("apply", "-f", str(system.folder / "kept.yaml"))
    system.until(lambda: rung(system, "heir"))
    assert total(client, "heir", "kept") == (11, 3)
    ask(client, "heir", "b|8|100|", function="kept")
    system.command("scale", "kept", "0")
    time.sleep(9)
    assert len(rung(system, "heir")) == 1
    system.command("scale", "kept", "auto")
    system.until(lambda: len(rung(system, "heir")) == 2)
    assert total(client, "heir", "kept") == (111, 6)


def test_an_alarm_in_the_past_is_due_at_once(system: System, client: Client) -> None:
    ask(client, "past", "a|-99999999|5|")
    system.until(lambda: rung(system, "past"), 5)
    assert total(client, "past") == (5, 3)
