"""The chart on a cluster: installed from nothing, asked, upgraded, uninstalled, installed again."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from dormouse_testing.cluster.client import CHART, Cluster, eventually

RELEASE = "dormouse"
SYSTEM = "dormouse-install"
CRD = "inferencefunctions.dormouse.dev"
KEPT = f"app.kubernetes.io/instance={RELEASE},dormouse.dev/part=etcd"


def upgrade(cluster: Cluster, *values: str, action: str = "upgrade", chart: Path = CHART) -> None:
    words = [word for value in ("singleNode=true", "gateway.replicas=2", "etcd.persistence.size=1Gi", *values) for word in ("--set", value)]
    cluster.helm(action, RELEASE, str(chart), "-n", SYSTEM, *cluster.chart_values(), *words, "--wait", "--timeout", "120s")


@pytest.fixture(scope="module")
def installed(alone: Cluster) -> Iterator[Cluster]:
    cluster = alone
    if cluster.exists("crd", CRD):
        pytest.fail(f"{CRD} is there already: this test installs, uninstalls and removes it")
    with cluster.namespace(SYSTEM):
        cluster.volume(f"{SYSTEM}-0")
        try:
            upgrade(cluster, action="install")
            yield cluster
        finally:
            cluster.helm("uninstall", RELEASE, "-n", SYSTEM, "--ignore-not-found", "--wait")
            cluster.kubectl("delete", "crd", CRD, "--ignore-not-found")
            cluster.kubectl("delete", "pvc", "-n", SYSTEM, "-l", KEPT, "--wait=false")
            if cluster.own:
                cluster.kubectl("delete", "pv", f"{SYSTEM}-0", "--ignore-not-found", "--wait=false")


def pods(cluster: Cluster) -> dict[str, str]:
    """uid -> name of those that are not going."""
    found = cluster.get("pods", "", SYSTEM)
    return {each["metadata"]["uid"]: each["metadata"]["name"] for each in found if "deletionTimestamp" not in each["metadata"]}


def test_every_pod_is_ready_and_none_had_to_be_restarted_often(installed: Cluster) -> None:
    found = installed.get("pods", "", SYSTEM)
    assert len(found) == 4
    for each in found:
        conditions = {condition["type"]: condition["status"] for condition in each["status"]["conditions"]}
        assert conditions["Ready"] == "True", each["metadata"]["name"]
        started = [*each["status"].get("initContainerStatuses", []), *each["status"]["containerStatuses"]]
        assert all(container["restartCount"] <= 1 for container in started), each["metadata"]["name"]


def test_helm_test_passes_and_leaves_no_pod(installed: Cluster) -> None:
    installed.helm("test", RELEASE, "-n", SYSTEM)
    assert len(installed.get("pods", "", SYSTEM)) == 4


def test_one_operator_leads_however_many_run(installed: Cluster) -> None:
    upgrade(installed, "operator.replicas=2")
    said = eventually("one says that it leads", lambda: leading(installed))
    assert said == 1
    upgrade(installed)
    assert eventually("one leads again", lambda: leading(installed)) == 1


def leading(cluster: Cluster) -> int:
    names = [name for name in pods(cluster).values() if "-operator-" in name]
    return sum(" leading " in cluster.kubectl("logs", "-n", SYSTEM, name) for name in names)


def test_gateway_and_etcd_may_be_evicted_one_at_a_time(installed: Cluster) -> None:
    """No budget makes a node impossible to drain: the API server says yes to each pod, in a dry run."""
    for name in pods(installed).values():
        eviction = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": name, "namespace": SYSTEM},
            "deleteOptions": {"dryRun": ["All"]},
        }
        path = f"/api/v1/namespaces/{SYSTEM}/pods/{name}/eviction"
        installed.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))


def test_an_upgrade_that_changes_nothing_touches_no_pod(installed: Cluster) -> None:
    before = pods(installed)
    upgrade(installed)
    assert pods(installed) == before


def test_an_upgrade_that_says_nothing_of_members_leaves_as_many_as_there_are(installed: Cluster) -> None:
    """Whatever the defaults say by now: `helm rollback` could not go back. Who asks for three gets them, fewer are refused."""

    def members(*values: str) -> int:
        words = [word for value in values for word in ("--set", value)]
        told = installed.helm("upgrade", RELEASE, str(CHART), "-n", SYSTEM, *installed.chart_values(), *words, "--dry-run=server")
        found = [each for each in yaml.safe_load_all(told.partition("MANIFEST:\n")[2].partition("\nNOTES:")[0]) if each]
        return int(next(each["spec"]["replicas"] for each in found if each["kind"] == "StatefulSet"))

    assert [members(), members("singleNode=true"), members("etcd.replicas=3")] == [1, 1, 3]


def test_an_upgrade_upgrades_the_definition(installed: Cluster, tmp_path: Path) -> None:
    """From a chart whose definition says less."""
    older = tmp_path / "dormouse"
    shutil.copytree(CHART, older)
    definition = older / "files" / "inferencefunctions.yaml"
    text = definition.read_text()
    definition.write_text(text.replace("    - ifn\n", "    - old\n"))
    assert definition.read_text() != text
    upgrade(installed, chart=older)
    eventually("the older definition is served", lambda: installed.kubectl("get", "old", "-A") == "")
    upgrade(installed)
    eventually("the newer definition is served", lambda: installed.kubectl("get", "ifn", "-A") == "")


def test_what_was_stored_outlives_uninstall_and_install(installed: Cluster) -> None:
    """Also the definition, with every function; and etcd lets the new release in, which knows the old one's passwords."""
    definition = installed.get("crd", CRD)["metadata"]["uid"]
    ask_store(installed, "await store.txn(Txn((), (Put('/kept', b'by uninstall'),)))")
    installed.helm("uninstall", RELEASE, "-n", SYSTEM, "--wait")
    assert not pods(installed)
    assert installed.get("crd", CRD)["metadata"]["uid"] == definition
    upgrade(installed, action="install")
    assert ask_store(installed, "print((await store.get(['/kept']))[1]['/kept'].value.decode())") == "by uninstall"
    installed.helm("test", RELEASE, "-n", SYSTEM)


ASK = """
import asyncio
from pathlib import Path
from dormouse_core.seams import Put, Txn
from dormouse_kit.etcd import EtcdStore, TlsFiles

async def ask():
    store = EtcdStore(["{endpoint}"], tls=TlsFiles(Path("/etc/dormouse/tls/ca.crt")), user="root",
                      password=Path("/etc/dormouse/users/operator").read_text())
    {statement}
    await store.close()

asyncio.run(ask())
"""


def ask_store(cluster: Cluster, statement: str) -> str:
    """As root, from the operator's pod."""
    endpoint = f"{RELEASE}-etcd-0.{SYSTEM}.svc.cluster.local:2379"
    program = ASK.format(endpoint=endpoint, statement=statement)
    said = cluster.kubectl("exec", "-n", SYSTEM, f"deploy/{RELEASE}-operator", "--", "python3", "-c", program)
    return said.splitlines()[-1] if said else ""
