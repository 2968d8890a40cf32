"""Starts, restarts and ends of the gateway's parts, under calls."""

import asyncio
import contextlib
import json
import shutil
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable

import grpc
import grpc.aio
import pytest
from dormouse_core.keys import Keys
from dormouse_gateway.envoy import xds
from dormouse_gateway.envoy.bootstrap import bootstrap
from dormouse_gateway.envoy.resources import CLUSTER, Route, entry, pack, resource, resources
from dormouse_gateway.envoy.snapshot import Snapshot
from dormouse_gateway.paths import STREAM
from dormouse_gateway.settings import parse
from dormouse_kit.etcd import EtcdStore
from dormouse_proto import envoy
from dormouse_testing.etcd_server import EtcdServer
from dormouse_testing.gateway import INFER, FakeWorker, Gateway, Seen, World, infer, request, running
from dormouse_testing.http2 import Connection

Code = grpc.StatusCode


async def both(world: World, worker: FakeWorker) -> None:
    """A stateless and a stateful function."""
    plain = await world.function("plain")
    await world.register(plain, worker)
    steps = await world.function("steps", shards=8)
    await world.register(steps, worker)
    await world.own(steps, "w", list(range(8)))


AWAY = 4.0  # seconds that an agent may be away: Envoy tries to reach it for 5 s at least


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110 - a state of another process
            await asyncio.sleep(0.02)


class Load:
    """Calls one after the other, of both functions, until `stop`; `bad` keeps what was not OK."""

    def __init__(self, gateway: Gateway) -> None:
        self.good = 0
        self.bad: list[object] = []
        self._gateway = gateway
        self._ended = False

    async def __aenter__(self) -> "Load":
        self._tasks = [asyncio.create_task(self._call(model)) for model in ("plain", "steps")]
        await self.more()
        return self

    async def more(self, count: int = 30) -> None:
        """Returns when so many more were answered."""
        before = self.good
        await until(lambda: self.good >= before + count or bool(self.bad))

    async def _call(self, model: str) -> None:
        async with self._gateway.channel() as channel:
            number = 0
            while not self._ended:
                number += 1
                answer = await infer(channel, request(model, number if model == "steps" else None), timeout=30)
                if answer.code is Code.OK:
                    self.good += 1
                else:
                    self.bad.append(answer)
                await asyncio.sleep(0.005)

    async def __aexit__(self, *_: object) -> None:
        self._ended = True
        await asyncio.gather(*self._tasks)


def listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
        return True
    return False


async def test_the_agent_restarts_without_a_bad_call(etcd_server: EtcdServer, installation: str, world: World, worker: FakeWorker) -> None:
    await both(world, worker)
    asleep = await world.function("asleep")
    with running(etcd_server.endpoint, installation) as gateway:
        await gateway.routed("default/steps", "map")
        async with Load(gateway) as load, gateway.channel() as channel:
            for _ in range(5):  # a start that takes longer than calls wait, since the machine is busy, shows nothing
                held = asyncio.create_task(infer(channel, request("asleep"), timeout=60))
                await gateway.held(1)
                assert gateway.agent is not None
                gateway.agent.kill()
                gateway.agent.wait()
                began = time.monotonic()
                new = asyncio.create_task(infer(channel, request("asleep"), timeout=60))
                await load.more()
                assert not held.done(), held.result()
                assert not new.done(), new.result()
                gateway.start_agent()
                await until(lambda: listens(gateway.relay))
                took = time.monotonic() - began
                await load.more()
                await world.register(asleep, worker)
                found = [(await call).code for call in (held, new)]
                if found == [Code.OK, Code.OK] or took < AWAY:
                    break
                await world.unregister(asleep, worker.name)
                await gateway.routed(asleep.label)
            assert found == [Code.OK, Code.OK]
        assert load.bad == []


async def test_negative_control_with_a_workers_two_seconds_an_agent_that_stands_still_loses_its_stream(
    etcd_server: EtcdServer, installation: str, world: World, worker: FakeWorker
) -> None:
    """A call that waits in it is sent again, which a stream is not."""
    function = await world.function("asleep")
    gateway = Gateway(etcd_server.endpoint, installation)
    config = bootstrap(parse(gateway.options, "test"))
    for cluster in config["static_resources"]["clusters"]:
        (options,) = cluster["typed_extension_protocol_options"].values()
        options["explicit_http_config"]["http2_protocol_options"]["connection_keepalive"]["timeout"] = "2s"

    async def message() -> AsyncIterator[bytes]:
        yield request("asleep").SerializeToString()

    gateway.start_agent()
    gateway.start_envoy_with(json.dumps(config))
    try:
        gateway.wait_ready()
        await gateway.routed(function.label)
        async with gateway.channel() as channel:
            call = asyncio.create_task(infer(channel, request("asleep"), timeout=60))
            stream = channel.stream_stream(STREAM)(message(), timeout=60)
            await gateway.held(2)
            assert gateway.agent is not None
            gateway.agent.send_signal(signal.SIGSTOP)
            await asyncio.sleep(4.5)
            gateway.agent.send_signal(signal.SIGCONT)
            await world.register(function, worker)
            assert (await call).code is Code.OK
            with pytest.raises(grpc.aio.AioRpcError) as broken:
                [each async for each in stream]
            assert broken.value.code() is Code.UNAVAILABLE
    finally:
        gateway.stop()


async def test_envoy_without_an_agent_is_not_ready(etcd_server: EtcdServer, installation: str, world: World, worker: FakeWorker) -> None:
    await both(world, worker)
    gateway = Gateway(etcd_server.endpoint, installation)
    try:
        gateway.start_envoy()
        limit = time.monotonic() + 30
        while not gateway.admin.exists():
            assert time.monotonic() < limit, gateway.log("dormouse_gateway.envoy")
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.5)
        assert not gateway.ready()
        assert "LIVE" not in await gateway.ask("/ready")
        gateway.start_agent()
        gateway.wait_ready()
        async with gateway.channel() as channel:
            assert (await infer(channel, request("plain"))).code is Code.OK
    finally:
        gateway.stop()


async def test_a_gateway_without_a_store_is_not_ready_and_heals(own_etcd: EtcdServer, worker: FakeWorker) -> None:
    store = EtcdStore([own_etcd.endpoint])
    world = World(store, Keys("away"))
    await both(world, worker)
    await store.close()
    own_etcd.kill()
    gateway = Gateway(own_etcd.endpoint, "away")
    try:
        gateway.start_agent()
        gateway.start_envoy()
        await asyncio.sleep(2)
        assert not gateway.ready(), "it knows no function: it must not answer for any"
        own_etcd.start()
        gateway.wait_ready()
        await gateway.routed("default/steps", "map")
        async with Load(gateway) as load:
            own_etcd.kill()
            await asyncio.sleep(1)
            async with gateway.channel() as channel:
                unknown = await infer(channel, request("nobody"), timeout=2)
                assert unknown.code is Code.DEADLINE_EXCEEDED, "it is held: whether it exists is not known"
            own_etcd.start()
            await asyncio.sleep(1)
        assert load.bad == []
        store = EtcdStore([own_etcd.endpoint])
        late = await World(store, Keys("away")).function("late")
        await World(store, Keys("away")).register(late, worker)
        await gateway.routed(late.label, late.uid)
        await store.close()
    finally:
        gateway.stop()


async def test_a_store_that_came_back_empty_is_not_known_to_lack_a_function(own_etcd: EtcdServer, worker: FakeWorker) -> None:
    """Until the leader has written again what there is, and has said so."""

    async def code(channel: grpc.aio.Channel) -> Code:
        return (await infer(channel, request("plain"), timeout=30)).code

    store = EtcdStore([own_etcd.endpoint])
    await both(World(store, Keys("away")), worker)
    await store.close()
    with running(own_etcd.endpoint, "away") as gateway:
        await gateway.routed("default/steps", "map")
        async with gateway.channel() as channel:
            assert await code(channel) is Code.OK
            own_etcd.stop()
            shutil.rmtree(own_etcd.folder / "data")
            own_etcd.start()
            answers = [Code.OK]  # until it has noticed: Envoy's own routes lead to the worker
            async with asyncio.timeout(30):
                while answers[-1] is Code.OK:
                    answers.append(await code(channel))
                    await asyncio.sleep(0.1)
            for _ in range(20):
                answers.append(await code(channel))
            assert set(answers) == {Code.OK, Code.UNAVAILABLE}
            store = EtcdStore([own_etcd.endpoint])
            again = World(store, Keys("away"))
            await again.put(again.keys.leader, b"")
            await again.mark()
            async with asyncio.timeout(30):
                while (found := await code(channel)) is Code.UNAVAILABLE:  # noqa: ASYNC110 - a state of another process
                    await asyncio.sleep(0.1)
            assert found is Code.NOT_FOUND, "by now it is known"
            await store.close()


async def test_a_stopping_envoy_lets_calls_end(etcd_server: EtcdServer, installation: str, world: World, worker: FakeWorker) -> None:
    await both(world, worker)

    async def slow(seen: Seen) -> None:
        await asyncio.sleep(1)

    worker.behave = slow
    with running(etcd_server.endpoint, installation) as gateway:
        await gateway.routed("default/steps", "map")
        async with gateway.channel() as channel:
            calls = [asyncio.create_task(infer(channel, request("steps", n), timeout=30)) for n in range(1, 20)]
            await until(lambda: len(worker.calls) == 19)
            assert gateway.envoy is not None
            gateway.envoy.send_signal(signal.SIGTERM)
            assert {each.code for each in await asyncio.gather(*calls)} == {Code.OK}
        assert await asyncio.to_thread(gateway.envoy.wait, 30) == 0


@pytest.mark.parametrize(("seconds", "served"), [("5", True), ("0", False)])  # 0: the negative control
async def test_a_stopping_envoy_serves_who_has_not_heard_of_it(
    etcd_server: EtcdServer, installation: str, world: World, worker: FakeWorker, seconds: str, served: bool
) -> None:
    """kube-proxies and load balancers hear later than the pod that it goes. Who dials is served until the stated time is over, who is
    connected is told with the next answer to dial anew, and then it ends. Nobody calls when it is told."""
    await both(world, worker)
    with running(etcd_server.endpoint, installation, "--min-drain-seconds", seconds, "--drain-seconds", "5") as gateway:
        await gateway.routed("default/steps", "map")
        assert gateway.envoy is not None
        with Connection(gateway.listen) as connection:
            await asyncio.to_thread(lambda: connection.frames(ask(connection)))
            gateway.envoy.send_signal(signal.SIGTERM)
            began, codes = time.monotonic(), []
            if served:
                await until(lambda: "draining" in gateway.log("dormouse_gateway.envoy"))
                assert await asyncio.to_thread(lambda: connection.left(ask(connection))), "answered, and told to dial anew"
            while time.monotonic() - began < float(seconds) - 1 or (
                not served and set(codes) == {Code.OK} and time.monotonic() - began < 30
            ):
                async with gateway.channel() as channel:  # a connection of its own each time
                    codes.append((await infer(channel, request("steps", 1 + len(codes)))).code)
        assert (set(codes) == {Code.OK}) is served, codes
        assert await asyncio.to_thread(gateway.envoy.wait, 30) == 0
        assert not gateway.ready()
        assert "calls are still under way" not in gateway.log("dormouse_gateway.envoy"), "also where both times are the same"


def ask(connection: Connection) -> int:
    """A call to `plain`; its stream."""
    body = request("plain").SerializeToString()
    stream = connection.open([(b":method", b"POST"), (b":scheme", b"http"), (b":path", INFER.encode()), (b":authority", b"x"),
                              (b"content-type", b"application/grpc"), (b"te", b"trailers")])  # fmt: skip
    connection.send(stream, b"\0" + len(body).to_bytes(4, "big") + body, 1 << 14, end=True)
    return stream


async def test_an_error_in_the_filter_is_answered_and_not_let_through(
    etcd_server: EtcdServer, installation: str, world: World, worker: FakeWorker
) -> None:
    await both(world, worker)
    gateway = Gateway(etcd_server.endpoint, installation)
    settings = parse(gateway.options, "test")
    sound = json.dumps(bootstrap(settings))
    broken = sound.replace("Router.from_authority(hd:get", "Router.no_such_function(hd:get")
    assert broken != sound
    gateway.start_agent()
    gateway.start_envoy_with(broken)
    try:
        gateway.wait_ready()
        async with gateway.channel() as channel:
            for model in ("plain", "steps"):
                answer = await infer(channel, request(model, 7))
                assert (answer.code, answer.details) == (Code.INTERNAL, "the gateway's router failed; its log names the cause")
        assert worker.calls == []
        assert "no_such_function" in gateway.log("dormouse_gateway.envoy")
    finally:
        gateway.stop()


async def test_a_killed_starter_takes_envoy_with_it(etcd_server: EtcdServer, installation: str) -> None:
    with running(etcd_server.endpoint, installation) as gateway:
        assert gateway.envoy is not None
        gateway.envoy.kill()
        gateway.envoy.wait()
        await until(lambda: not gateway.ready())


def refused_by(served: xds.Server) -> dict[str, str]:
    """What its Envoys hold against functions."""
    return {function: problem for stream in served._streams for function, problem in stream.refused().items()}


async def test_resources_that_envoy_refuses_harm_no_other_function(etcd_server: EtcdServer, installation: str, worker: FakeWorker) -> None:
    """A real Envoy before an xDS server of the test's own, which knows a cluster and endpoints that no Envoy takes."""
    gateway = Gateway(etcd_server.endpoint, installation)
    settings = parse(gateway.options, "test")
    snapshot = Snapshot()
    served = xds.Server(snapshot)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((served.handlers(),))
    server.add_insecure_port(settings.xds)
    await server.start()
    gateway.start_envoy()
    try:
        bad_cluster = resource(CLUSTER, "default/bad/u", {"name": "default/bad/u", "type": "EDS"})  # no eds_config
        bad_hosts = resources(Route("default", "hosts", "u", ("127.0.0.1:1",)), settings)
        broken = envoy.message("envoy.config.endpoint.v3.ClusterLoadAssignment").FromString(bad_hosts[1].body)
        broken.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address = "not-an-ip"  # type: ignore[attr-defined]
        snapshot.put("+", [entry(settings)])
        for n in range(20):
            snapshot.put(f"default/good{n}", resources(Route("default", f"good{n}", "u", (worker.address,)), settings))
        snapshot.put("default/bad", [bad_cluster])
        snapshot.put("default/hosts", [bad_hosts[0], pack(bad_hosts[1].type_url, bad_hosts[1].name, broken), bad_hosts[2]])
        snapshot.complete = True
        snapshot.publish()
        await asyncio.to_thread(gateway.wait_ready)
        await gateway.routed("default/good19", "uid")
        async with gateway.channel() as channel:
            for n in range(20):
                assert (await infer(channel, request(f"good{n}"))).code is Code.OK, n
        await until(lambda: set(refused_by(served)) == {"default/bad", "default/hosts"})
        refused = refused_by(served)
        assert set(refused) == {"default/bad", "default/hosts"}
        assert "cluster" in refused["default/bad"]
        assert "not-an-ip" in refused["default/hosts"]
        snapshot.put("default/bad", ())
        snapshot.put("default/hosts", resources(Route("default", "hosts", "u", (worker.address,)), settings))
        snapshot.publish()
        await gateway.routed("default/hosts", "uid")
        await until(lambda: not refused_by(served))
    finally:
        gateway.stop()
        await server.stop(0)
