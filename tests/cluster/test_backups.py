"""A backup by the chart's CronJob, and what it is for: objects that are applied again under new uids go on from their last saved steps."""

from collections.abc import Iterator

import pytest
from dormouse_testing import pages
from dormouse_testing.cluster.client import CHART, eventually
from dormouse_testing.cluster.functions import RELEASE, SYSTEM, Dormouse, counter

CLAIM = "dormouse-backups"


@pytest.fixture
def backed_up(own: Dormouse) -> Iterator[Dormouse]:
    """With a volume for them, and without their CronJobs afterwards."""
    own.cluster.volume(f"{SYSTEM}-backups", "20Gi")
    try:
        yield own
    finally:
        own.cluster.helm("upgrade", RELEASE, str(CHART), "-n", SYSTEM, "--reuse-values", "--set", "backup.enabled=false")
        own.cluster.kubectl("delete", "jobs", "--all", "-n", SYSTEM)
        own.cluster.kubectl("delete", "pvc", CLAIM, "-n", SYSTEM, "--wait=false")
        own.cluster.kubectl("delete", "pv", f"{SYSTEM}-backups", "--wait=false")


def shown(dormouse: Dormouse, number: int) -> str:
    """A block of the page's section, run as it stands there; what it printed."""
    with dormouse.cluster.shell() as environment:
        return "".join(pages.run("Backup and restore", number, namespace=SYSTEM, environment=environment))


def test_restored_under_new_uids_every_session_goes_on_from_its_last_saved_step(backed_up: Dormouse) -> None:
    """Of a function whose sessions would go with it otherwise: what a restore brought is kept until its object is there."""
    dormouse, name, sessions = backed_up, "saved", [f"s{number}" for number in range(6)]
    dormouse.apply(counter(name, minReplicas=1), counter("gone"))
    for _ in range(3):
        for session in sessions:
            dormouse.call(name, 1, session=session)
    assert dormouse.call("gone", 7, session="a") == 7
    assert "sessions at revision" in shown(dormouse, 0)
    uid = dormouse.cluster.get("ifn", name, dormouse.space)["metadata"]["uid"]
    assert [dormouse.call(name, 1, session=session) for session in sessions] == [4] * 6
    dormouse.cluster.kubectl("delete", "ifn", name, "gone", "-n", dormouse.space)
    dormouse.apply(counter(name, minReplicas=1))
    dormouse.ready(name, 1)
    assert "sessions restored" in shown(dormouse, 1)
    assert dormouse.cluster.get("ifn", name, dormouse.space)["metadata"]["uid"] != uid
    dormouse.ready(name, 1)
    assert [dormouse.call(name, 1, session=session, timeout=120) for session in sessions] == [4] * 6, "the fourth step again"
    dormouse.apply(counter("gone", minReplicas=1))
    dormouse.ready("gone", 1)
    assert dormouse.call("gone", 1, session="a", timeout=120) == 8, "and one that is applied later"
    dormouse.delete(name, "gone")
    eventually("with its policy they go with it", lambda: not [key for key in dormouse.stored() if f"/{dormouse.space}/{name}/" in key], 60)
