"""What a gateway concludes from the store: routes, owners, who takes calls, and what it refuses."""

from typing import Any

from dormouse_core import spec
from dormouse_core.errors import Code
from dormouse_core.keys import Function as Identity
from dormouse_core.keys import Keys
from dormouse_core.seams import Event, Item
from dormouse_core.spec.objects import FunctionSpec, Model
from dormouse_gateway.envoy.resources import NOBODY, SCOPE, Route, resources, shard_map
from dormouse_gateway.settings import GatewaySettings
from dormouse_gateway.watching.table import Function, Table
from dormouse_proto import envoy, state_pb2

KEYS = Keys()
F = Identity("speech", "vad", "u1")
READY, DRAINING = state_pb2.WorkerEntry.READY, state_pb2.WorkerEntry.DRAINING


def entry(shards: int = 4, uid: str = "u1", **more: Any) -> state_pb2.FunctionEntry:
    fields = {key: more.pop(key) for key in list(more) if key in FunctionSpec.__struct_fields__}
    text = spec.spec_to_json(FunctionSpec(runtime="onnx", model=Model(uri="file:///m.onnx"), **fields))
    given = {"revision": "r2", "proved_revision": "r2", **more}
    return state_pb2.FunctionEntry(namespace="speech", name="vad", uid=uid, spec=text, shards=shards, **given)


class Told:
    """A table that is told one key after another."""

    def __init__(self, **more: Any) -> None:
        self.table = Table(KEYS)
        self.revision = 1
        self.table.replace(KEYS.functions, [], 1)
        self.table.replace(KEYS.maps, [], 1)
        self.put(KEYS.function("speech", "vad"), entry(**more).SerializeToString())

    def put(self, key: str, value: bytes | None) -> dict[str, str]:
        self.revision += 1
        item = None if value is None else Item(key, value, self.revision, self.revision)
        prefix = KEYS.functions if key.startswith(KEYS.functions) else KEYS.maps
        return self.table.apply([Event(key, self.revision, item)], prefix, self.revision)[1]

    def worker(self, name: str, address: str, revision: str = "r2", state: Any = READY) -> dict[str, str]:
        value = state_pb2.WorkerEntry(address=address, revision=revision, state=state)
        return self.put(KEYS.worker(F, name), value.SerializeToString())

    def shard(self, shard: int, owner: str) -> int:
        self.put(KEYS.shard(F, shard), state_pb2.ShardEntry(owner=owner, epoch=1).SerializeToString())
        return self.revision

    @property
    def function(self) -> Function:
        found = self.table.function("speech/vad")
        assert found is not None
        return found

    @property
    def route(self) -> Route:
        found = self.function.route()
        assert found is not None
        return found


def test_a_shard_whose_owner_has_no_lease_is_nobodys() -> None:
    told = Told()
    told.worker("a", "10.0.0.1:9000")
    for shard, owner in enumerate(["a", "dead", "a"]):
        last = told.shard(shard, owner)
    assert told.route.hosts == ("10.0.0.1:9000",)
    assert told.route.owners == (0, -1, 0, -1)
    assert told.route.rev == last
    told.put(KEYS.worker(F, "a"), None)
    assert (told.route.hosts, told.route.owners) == ((), (-1, -1, -1, -1))
    told.worker("dead", "10.0.0.2:9000")  # its entry came later than the shard's: the order of keys does not matter
    assert told.route.owners == (-1, 0, -1, -1)


def test_a_draining_owner_keeps_its_shards_and_takes_no_stateless_calls() -> None:
    told = Told()
    told.worker("a", "10.0.0.1:9000", state=DRAINING)
    told.shard(0, "a")
    assert told.route.owners[0] == 0
    plain = Told(shards=0)
    plain.worker("a", "10.0.0.1:9000", state=DRAINING)
    plain.worker("b", "10.0.0.2:9000")
    assert plain.route.hosts == ("10.0.0.2:9000",)


def test_no_call_goes_back_to_an_older_revision_once_the_new_one_is_proved() -> None:
    told = Told(shards=0, revision="r2", proved_revision="r1")
    told.worker("old", "10.0.0.1:9000", "r1")
    assert told.route.hosts == ("10.0.0.1:9000",), "what serves goes on serving while the new one is tried"
    told.worker("new", "10.0.0.2:9000", "r2")
    assert told.route.hosts == ("10.0.0.2:9000",)
    told.put(KEYS.function("speech", "vad"), entry(0, proved_revision="r2").SerializeToString())
    told.put(KEYS.worker(F, "new"), None)
    assert told.route.hosts == (), "held, rather than answered by the model of before"


def test_a_function_that_is_stopped_deleted_or_made_anew() -> None:
    told = Told()
    told.worker("a", "10.0.0.1:9000")
    told.shard(0, "a")
    told.put(KEYS.function("speech", "vad"), entry(replicas=0).SerializeToString())
    assert (told.route.hosts, set(told.route.owners)) == ((), {-1})
    told.put(KEYS.function("speech", "vad"), entry(deleting=True).SerializeToString())
    assert told.function.route() is None
    told.put(KEYS.function("speech", "vad"), entry(uid="u2").SerializeToString())
    assert told.route.cluster == "speech/vad/u2"
    assert told.route.hosts == (), "workers of the one before are not its workers"
    told.put(KEYS.function("speech", "vad"), None)
    assert told.table.function("speech/vad") is None


def test_problems() -> None:
    bad = state_pb2.Problem(code=9, reason="ModelInvalid", message="opset 99", revision="r2")
    told = Told(shards=0, proved_revision="r1", problem=bad)
    refusal = told.function.refusal()
    assert refusal is not None
    assert (refusal.code, "opset 99 (ModelInvalid)" in refusal.message) == (Code.FAILED_PRECONDITION, True)
    told.worker("old", "10.0.0.1:9000", "r1")
    assert told.function.refusal() is None, "the proved revision serves"
    assert Told(shards=0, proved_revision="r1", proved_spec=b"{}", problem=bad).function.refusal() is None, "it sleeps, and can be woken"
    older = state_pb2.Problem(code=9, reason="ModelInvalid", message="opset 99", revision="r1")
    assert Told(shards=0, problem=older).function.refusal() is None, "the problem of a revision that is not wanted any more"


def test_one_entry_that_cannot_be_read_fails_alone() -> None:
    told = Told()
    told.worker("a", "10.0.0.1:9000")
    told.shard(0, "a")
    assert "worker.example:9000" in next(iter(told.worker("b", "worker.example:9000").values())), "Envoy resolves no names"
    assert told.put(KEYS.worker(F, "c"), b"\xff")
    assert told.put(f"{KEYS.shards(F)}nine", b"")
    assert told.put(KEYS.function("speech", "other"), b"\xff")
    assert told.put(KEYS.function("speech", "third"), state_pb2.FunctionEntry(spec=b"{").SerializeToString())
    assert told.route.owners == (0, -1, -1, -1)
    assert told.table.function("speech/other") is None
    assert told.worker("a", "no address"), "what was known of that key is forgotten"
    assert told.route.owners == (-1, -1, -1, -1)


def test_a_new_listing_replaces_everything() -> None:
    told = Told()
    told.worker("a", "10.0.0.1:9000")
    told.shard(0, "a")
    changed, _ = told.table.replace(KEYS.maps, [], 90)
    assert changed == {"speech/vad"}
    assert told.route.owners == (-1, -1, -1, -1)
    changed, _ = told.table.replace(KEYS.functions, [], 91)
    assert changed == {"speech/vad"}, "what is gone has changed, too"
    assert told.table.labels() == set()


def test_the_scope_says_what_lua_needs() -> None:
    route = Route("speech", "vad", "u1", ("10.0.0.1:9000", "10.0.0.2:9000"), (0, -1, 1), rev=77)
    _, _, scope = resources(route, GatewaySettings())
    read: Any = envoy.message("envoy.config.route.v3.ScopedRouteConfiguration").FromString(scope.body)
    one = read.route_configuration.virtual_hosts[0].routes[0]
    metadata = dict(one.metadata.filter_metadata["envoy.filters.http.lua"])
    assert metadata == {"uid": "u1", "rev": "77", "hosts": "10.0.0.1:9000,10.0.0.2:9000", "map": '!!~~!"'}
    assert read.key.fragments[0].string_key == "speech/vad"
    assert one.route.timeout.seconds == 0
    assert one.route.HasField("timeout")
    assert scope.type_url == SCOPE


def test_shard_maps_hold_any_place() -> None:
    places = [0, 89, 90, 8099, -1]
    text = shard_map(places)
    assert len(text) == 10
    pairs = [text[i : i + 2] for i in range(0, 10, 2)]
    assert [(ord(a) - 33) * 90 + ord(b) - 33 for a, b in pairs[:4]] == places[:4]
    assert pairs[4] == NOBODY
    assert text.isascii()
    assert text.isprintable()


def test_namespaces_that_have_functions_and_whether_a_function_is_known() -> None:
    told = Told()
    assert told.table.namespaces() == {"speech"}
    assert told.table.sharing("other/f") == set()
    told.put(KEYS.function("other", "f"), entry().SerializeToString())
    assert told.table.namespaces() == told.table.sharing("other/f") == {"speech", "other"}
    told.put(KEYS.function("other", "f"), None)
    assert told.table.namespaces() == {"speech"}
