"""``python -m dormouse_operator --local``: campaign, lead, end.

Losing the lease ends the process with `LOST`, and whoever keeps it running starts it again as a candidate: a former leader with tasks left
over from its term is a kind of bug that cannot exist in a new process.
"""

import asyncio
import signal
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from dormouse_core.errors import DormouseError
from dormouse_core.keys import Keys
from dormouse_core.workerfile import StoreAccess
from dormouse_kit import log, metrics
from dormouse_kit.clock import SystemClock
from dormouse_kit.election import Election
from dormouse_kit.etcd import EtcdStore, TlsFiles
from dormouse_kit.grpc_options import server_options
from dormouse_proto import state_pb2

from dormouse_operator import services, settings
from dormouse_operator.dialing import GrpcDialer
from dormouse_operator.leading import Leader
from dormouse_operator.providers import LocalProvider
from dormouse_operator.settings import Settings

LOST = 75  # EX_TEMPFAIL: start me again


async def run(s: Settings) -> int:
    """The exit code."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    clock, keys = SystemClock(), Keys(s.installation)
    access = _access(s)
    store = EtcdStore(s.store, tls=_tls(s), user=access.user, password=access.password)
    provider = LocalProvider(s.provider, installation=s.installation, store=access, model_root=s.model_root)
    served = metrics.serve(s.metrics)
    value = state_pb2.Leader(address=s.listen, name=s.name).SerializeToString()
    election = Election(store, clock, keys.leader, value)
    try:
        if not await _first(election.campaign(), stop):
            return 0
        leader = Leader(store, clock, keys, provider, GrpcDialer(), leader_new=election.election, name=s.name)
        return await _lead(leader, election, s, stop)
    finally:
        await election.resign()
        await provider.close()
        await store.close()
        served.close()


async def _lead(leader: Leader, election: Election, s: Settings, stop: asyncio.Event) -> int:
    leading = asyncio.create_task(leader.run())
    try:
        await leader.listed(leading)
        listening = await services.serve(leader, s.control, s.listen, server_options())
    except DormouseError as error:
        leading.cancel()
        log.warning("cannot lead", error=error.message)
        return 1
    ends = {asyncio.create_task(stop.wait()), asyncio.create_task(election.lost.wait()), leading}
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    await listening.stop()
    for task in ends:
        task.cancel()
    outcomes = await asyncio.gather(*ends, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            log.warning("leading failed", error=repr(outcome))
            return 1
    if stop.is_set():
        return 0
    log.warning("the lease is lost; another may lead")
    return LOST


async def _first(work: Coroutine[Any, Any, object], stop: asyncio.Event) -> bool:
    """Whether `work` was done before the stop."""
    doing = asyncio.create_task(work)
    ending = asyncio.create_task(stop.wait())
    await asyncio.wait((doing, ending), return_when=asyncio.FIRST_COMPLETED)
    ending.cancel()
    if not doing.done():
        doing.cancel()
        await asyncio.gather(doing, return_exceptions=True)
        return False
    doing.result()
    return True


def _access(s: Settings) -> StoreAccess:
    password = Path(s.store_password_file).read_text().strip() if s.store_password_file else ""
    return StoreAccess(endpoints=list(s.store), ca=s.store_ca, cert=s.store_cert, key=s.store_key, user=s.store_user, password=password)


def _tls(s: Settings) -> TlsFiles | None:
    if not (s.store_ca or s.store_cert):
        return None
    return TlsFiles(*(Path(path) if path else None for path in (s.store_ca, s.store_cert, s.store_key)))


def main(arguments: Sequence[str] | None = None) -> int:
    log.setup("operator")
    return asyncio.run(run(settings.parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
