"""What a function's pods may ask for, on a cluster: the operator, whose rights would do, makes nothing of what the policy refuses."""

import grpc
import pytest
from dormouse_testing.cluster.client import CHART, eventually
from dormouse_testing.cluster.functions import RELEASE, SYSTEM, Dormouse, echo
from dormouse_testing.manifests import Data

VOLUME = {"name": "loot", "mountPath": "/loot"}
THEFTS: dict[str, tuple[Data, str]] = {
    "by-volume": ({"volumes": [{**VOLUME, "secret": {"secretName": "steady-store"}}]}, "steady-store"),
    "by-env": ({"envFrom": [{"secretRef": {"name": "steady-store"}}]}, "steady-store"),
    "by-account": ({"serviceAccountName": "admin"}, "serviceAccountName"),
    "by-class": ({"priorityClassName": "system-node-critical"}, "priorityClassName"),
    "by-taint": ({"tolerations": [{"operator": "Exists"}]}, "tolerations"),
    "by-secret": ({"env": [{"name": "T", "valueFrom": {"secretKeyRef": {"name": "token", "key": "token"}}}]}, "token"),
}


@pytest.mark.usefixtures("unharmed")
def test_what_the_policy_refuses_is_told_and_becomes_no_pod(base: Dormouse) -> None:
    """The Secret of a neighbour's user in the store is there, and no function's pod gets it, nor what else is not allowed."""
    assert base.cluster.get("secret", "steady-store", base.space)["data"]["password"]
    base.apply(*(echo(name, workers=workers, timeouts={"hold": "2s"}) for name, (workers, _) in THEFTS.items()))
    for name, (_, told) in THEFTS.items():
        assert told in base.reason(name, "Applied", "NotAllowed")
        code, text = base.refused(name, 10.0)
        assert code == grpc.StatusCode.FAILED_PRECONDITION, text
    assert not [pod for name in THEFTS for pod in base.pods(name)]
    assert base.call("echo", 6) == 6
    base.patch("by-taint", {"workers": {"tolerations": None}, "timeouts": None})
    eventually("it heals when it is mended", lambda: base.condition("by-taint", "Applied").get("status") == "True")
    assert base.call("by-taint", 3) == 3
    base.delete(*THEFTS)


def test_the_installations_own_is_refused_in_its_namespace(base: Dormouse) -> None:
    """Whoever may make functions there, and nothing else, has no password of the store's root by it."""
    workers = {"volumes": [{**VOLUME, "secret": {"secretName": f"{RELEASE}-etcd-passwords"}}]}
    there = Dormouse(base.cluster, base.address, SYSTEM)
    try:
        there.apply(echo("root-thief", workers=workers))
        assert "it is Dormouse's own" in there.reason("root-thief", "Applied", "NotAllowed")
        assert not there.pods("root-thief")
    finally:
        there.delete("root-thief")
        there.close()


TAGGED, DIGESTED = "registry.example/handlers:1", f"registry.example/handlers@sha256:{'0' * 64}"


@pytest.mark.usefixtures("unharmed")
def test_an_image_without_a_digest_is_refused_where_the_policy_demands_one(base: Dormouse) -> None:
    """`workers.policy.imageDigests`. Control: before it, the same image by its tag becomes a pod, which nobody has to pull for that."""

    def policy(*values: str) -> None:
        words = [word for value in values for word in ("--set", f"workers.policy.{value}")]
        base.cluster.helm("upgrade", RELEASE, str(CHART), "-n", SYSTEM, "--reuse-values", *words, "--wait", "--timeout", "60s")

    def function(name: str, image: str) -> Data:
        return echo(name, minReplicas=1, workers={"image": image})

    def applied(name: str) -> bool:
        return base.condition(name, "Applied").get("status") == "True"

    policy("images={registry.example/*}")
    try:
        base.apply(function("tag-allowed", TAGGED))
        eventually("its pod is made", lambda: applied("tag-allowed") and base.pods("tag-allowed"))
        policy("imageDigests=true")
        base.apply(function("by-tag", TAGGED), function("by-digest", DIGESTED))
        assert "name@sha256:... is allowed" in base.reason("by-tag", "Applied", "NotAllowed")
        eventually("a digest is allowed", lambda: applied("by-digest") and base.pods("by-digest"))
        assert not base.pods("by-tag")
    finally:
        base.delete("tag-allowed", "by-tag", "by-digest")
        policy("images=null", "imageDigests=false")
