"""``python -m dormouse_operator``: ``--local`` on one machine, ``--kubernetes`` in a cluster."""

import asyncio
import signal
import sys
from collections.abc import Sequence

from dormouse_core import addresses
from dormouse_core.keys import Keys
from dormouse_kit import log, metrics
from dormouse_kit.clock import SystemClock
from dormouse_kit.election import Election
from dormouse_kit.etcd import EtcdMembers, EtcdStore
from dormouse_kit.grpc_options import server_options
from dormouse_proto import state_pb2

from dormouse_operator import local_contents, services, settings, terms
from dormouse_operator.dialing import GrpcDialer
from dormouse_operator.function_entries import FunctionEntries
from dormouse_operator.leading import Leader
from dormouse_operator.marking import Marking
from dormouse_operator.providers import LocalProvider
from dormouse_operator.settings import OperatorSettings
from dormouse_operator.space import Space


async def run(s: OperatorSettings, alone: bool = False) -> int:
    """The exit code; `terms.CLOCK`: to be run again, `alone`; `terms.LOST`: to be run again."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    clock, keys = SystemClock(), Keys(s.installation)
    access = terms.access(s)
    store = EtcdStore(s.store, tls=terms.tls(s), user=s.store_user, password=terms.password(s))
    members = EtcdMembers(s.store, tls=terms.tls(s), user=s.store_user, password=terms.password(s))
    space = Space(members, clock, s.store_quota)
    where = {"model_root": s.model_root, "gateway": s.gateway}
    provider = LocalProvider(s.provider, installation=s.installation, store=access, removal_wait=s.removal_wait, **where)
    served = metrics.serve(s.metrics)
    value = state_pb2.Leader(address=s.listen, name=s.name).SerializeToString()
    election = Election(store, clock, keys.leader, value)
    store.on_rewound = lambda why: election.lost.set()  # what this process has copied of the store is of a history that is gone
    looking = asyncio.create_task(space.run(lambda: election.leading), name="the store's space")
    try:
        if not await terms.campaigned(election, stop):
            return 0
        entries = FunctionEntries(store, keys, clock, election.election, local_contents.reader(s.model_root, clock))
        leader = Leader(
            store,
            clock,
            keys,
            provider,
            GrpcDialer(sockets=True),
            leader_new=election.election,
            name=s.name,
            removal_wait=s.removal_wait,
            rule=addresses.Rule(frozenset({s.listen, s.control, s.provider, *s.store}), sockets=True),
            entries=entries,
            space=space,
        )

        async def serve() -> services.Served:
            return await services.serve(leader, s.control, s.listen, server_options())

        code = await terms.lead(leader, election, stop, serve, [Marking(entries, clock).run], alone=alone)
        if code == terms.CLOCK:
            await election.resign()
            return terms.LOST if await terms.followed(store, clock, keys.leader, stop) else terms.CLOCK
        return code
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        await election.resign()
        await members.close()
        await provider.close()
        await store.close()
        served.close()


def main(arguments: Sequence[str] | None = None) -> int:
    log.setup("operator")
    given = sys.argv[1:] if arguments is None else arguments
    if "--kubernetes" in given:
        from dormouse_operator.kubernetes import options, running  # brings kopf, which one machine does without
        from dormouse_operator.kubernetes.watching import claiming

        chosen = options.parse(given)
        seen = claiming.Seen()
        return terms.again(lambda alone: running.run(chosen, seen, alone))
    parsed = settings.parse(given)
    return terms.again(lambda alone: run(parsed, alone))


if __name__ == "__main__":
    sys.exit(main())
