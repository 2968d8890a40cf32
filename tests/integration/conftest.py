"""What tests of a gateway share: what is in the store, one worker that is not real, and a connection. Each module has its `gateway`."""

from collections.abc import AsyncIterator

import grpc.aio
import pytest
from dormouse_core.keys import Keys
from dormouse_kit.etcd import EtcdStore
from dormouse_testing.etcd_server import EtcdServer
from dormouse_testing.gateway import FakeWorker, Gateway, World


@pytest.fixture
async def world(etcd_server: EtcdServer, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """Of the module's INSTALLATION; of a new one where it names none."""
    store = EtcdStore([etcd_server.endpoint])
    yield World(store, Keys(getattr(request.module, "INSTALLATION", None) or request.getfixturevalue("installation")))
    await store.close()


@pytest.fixture
async def worker() -> AsyncIterator[FakeWorker]:
    made = await FakeWorker("w").start()
    yield made
    await made.stop()


@pytest.fixture
async def channel(gateway: Gateway) -> AsyncIterator[grpc.aio.Channel]:
    async with gateway.channel() as made:
        yield made
