"""Passwords of the chart's etcd: when they are made and replaced, and in which order who logs in tries them."""

from typing import Any

import grpc
import grpc.aio
import pytest
from aetcd.rpc import rpc_pb2
from dormouse_core import passwords
from dormouse_core.limits import CREDENTIAL_SPREAD_SECONDS, PASSWORD_DAYS
from dormouse_core.passwords import DAY, Do, Observed, plan
from dormouse_kit.etcd.connections import Connection

NOW = 1_800_000_000.0
ONE = {"operator": "o", "gateway": "g", "workers": "w"}
TWO = {"operator": "o2\no", "gateway": "g2\ng", "workers": "w"}
FRESH = {key: f"fresh {key}" for key in passwords.KEYS}


@pytest.mark.parametrize(
    ("found", "now", "expected"),
    [
        (Observed({}), NOW, Do.MAKE),
        (Observed({**ONE, "gateway": " \n"}), NOW, Do.MAKE),
        (Observed(ONE), NOW, Do.DATE),
        (Observed(TWO), NOW, Do.DATE),
        (Observed(ONE, NOW), NOW + PASSWORD_DAYS * DAY - 1, Do.NOTHING),
        (Observed(ONE, NOW), NOW + PASSWORD_DAYS * DAY, Do.BEGIN),
        (Observed(ONE, NOW, asked=True), NOW, Do.BEGIN),
        (Observed(TWO, NOW, asked=True), NOW + CREDENTIAL_SPREAD_SECONDS - 1, Do.NOTHING),
        (Observed(TWO, NOW), NOW + CREDENTIAL_SPREAD_SECONDS, Do.SETTLE),
        (Observed({**TWO, "gateway": "g"}, NOW), NOW + CREDENTIAL_SPREAD_SECONDS, Do.SETTLE),
    ],
)
def test_the_next_step(found: Observed, now: float, expected: Do) -> None:
    assert plan(found, PASSWORD_DAYS, now) is expected


def test_without_an_age_they_are_replaced_only_when_asked_for() -> None:
    assert plan(Observed(ONE, NOW), 0, NOW + 100 * 365 * DAY) is Do.NOTHING
    assert plan(Observed(ONE, NOW, asked=True), 0, NOW) is Do.BEGIN


def test_functions_passwords_stay_whatever_becomes_of_roots() -> None:
    assert passwords.made({}, FRESH) == FRESH
    assert passwords.made({"operator": "o", "gateway": "g"}, FRESH) == {**ONE, "workers": "o"}, "derived from it until now"
    begun = passwords.begun(ONE, FRESH)
    assert begun == {"operator": "fresh operator\no", "gateway": "fresh gateway\ng", "workers": "w"}
    assert passwords.settled(begun) == {**FRESH, "workers": "w"}


class Refused(grpc.aio.AioRpcError):
    def __init__(self, text: str) -> None:
        super().__init__(grpc.StatusCode.INVALID_ARGUMENT, grpc.aio.Metadata(), grpc.aio.Metadata(), text)


class Etcd(Connection):
    """`valid`: the password at each try."""

    def __init__(self, *valid: str, says: str = "etcdserver: authentication failed, invalid user ID or password") -> None:
        self.valid, self.says, self.tried = list(valid), says, list[str]()
        self.unary = {"Authenticate": self._authenticate}

    async def _authenticate(self, request: bytes, timeout: float) -> Any:
        given = rpc_pb2.AuthenticateRequest.FromString(request).password
        self.tried.append(given)
        if given != self.valid.pop(0):
            raise Refused(self.says)
        return rpc_pb2.AuthenticateResponse(token="token")


@pytest.mark.parametrize(
    ("valid", "tried"),
    [
        (("new",), ["new"]),
        (("old", "old"), ["new", "old"]),
        (("old", "new", "new"), ["new", "old", "new"]),  # replaced between the two tries
    ],
)
async def test_at_every_moment_of_a_replacement_one_of_the_lines_is_valid(valid: tuple[str, ...], tried: list[str]) -> None:
    etcd = Etcd(*valid)
    await etcd.authenticate("root", ["new", "old"], 1.0)
    assert etcd.tried == tried
    assert etcd.metadata[1] == ("token", "token")


async def test_a_password_that_is_wrong_is_tried_once_and_so_is_one_when_etcd_says_something_else() -> None:
    for etcd, given in ((Etcd("other"), ["one"]), (Etcd("other", says="etcdserver: authentication is not enabled"), ["new", "old"])):
        with pytest.raises(grpc.aio.AioRpcError):
            await etcd.authenticate("root", given, 1.0)
        assert len(etcd.tried) == 1
