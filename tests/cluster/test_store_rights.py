"""The chart's own etcd, whose users are tenants' code: what one function's user, or nobody, gets of another's. No cluster is needed."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import unavailable
from dormouse_core import storeversions
from dormouse_kit import processes
from dormouse_testing import store_attacks
from dormouse_testing.cluster import tools
from dormouse_testing.cluster.client import CHART
from dormouse_testing.cluster.layout import Layout
from dormouse_testing.etcd_server import EtcdServer


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EtcdServer]:
    layout = Layout.here()
    if reason := tools.impossible():
        unavailable(reason)
    tools.build(layout)
    monkeypatch.setenv("PATH", str(layout.bin))
    with EtcdServer(tmp_path / "etcd", "--bcrypt-cost", "4") as started:
        yield started


def test_it_is_the_charts_and_keeps_its_users_apart(server: EtcdServer) -> None:
    version = processes.etcd_version(str(Layout.here().bin / "etcd"))
    assert yaml.safe_load((CHART / "values.yaml").read_text())["etcd"]["image"]["tag"] == f"v{version}"
    assert storeversions.keeps_apart(version)


@pytest.mark.parametrize("nobody", [False, True], ids=["another-functions-user", "nobody"])
async def test_another_functions_user_and_nobody_get_nothing_and_change_nothing(server: EtcdServer, nobody: bool) -> None:
    """Range, Put, Delete, Watch, Lease, nested Txn, Alarm, MemberList, Compact and more, as requests of etcd's own API. What a pod's label
    lets through the policy is not enough."""
    found = await store_attacks.succeeded(server.endpoint, nobody=nobody)
    assert found.keys() <= (set() if nobody else store_attacks.HARMLESS)


async def test_negative_control_with_its_own_keys_each_way_of_reading_and_writing_gets_them(
    server: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attacks do what they say: whoever has the rights gets something by each that is about keys."""
    monkeypatch.setattr(store_attacks, "GRANTED", store_attacks.THEIRS)
    found = await store_attacks.succeeded(server.endpoint, nobody=False)
    about_keys = {name for name in store_attacks.ATTACKS if re.search("range|txn|watch|put|delete|lease", name)}
    beyond = {"range_from_its_own_to_the_end", "watch_from_its_own_to_the_end", "watch_from_its_own_over_others", "delete_all"}
    assert about_keys - beyond - found.keys() == set()
