"""The operator of a cluster: one term, put together.

Everything that knows the cluster is made when the election is won and ends with the process. Watches stand before the leader leads, so that
its first look at instances is a look at what is there.
"""

import asyncio
import contextlib
import resource
import signal
from collections.abc import Callable, Coroutine
from typing import Any

from dormouse_core import addresses
from dormouse_core.errors import DormouseError
from dormouse_core.keys import Keys
from dormouse_core.nodeloss import NodeLoss
from dormouse_core.seams import Store, StoreError
from dormouse_kit import log
from dormouse_kit.clock import SystemClock
from dormouse_kit.election import Election
from dormouse_kit.etcd import EtcdMembers, EtcdStore
from dormouse_kit.etcd.membership import Membership
from dormouse_kit.etcd.users import Users
from dormouse_kit.grpc_options import server_options
from dormouse_proto import state_pb2

from dormouse_operator import services, store_users, terms
from dormouse_operator.dialing import GrpcDialer, answers
from dormouse_operator.isolation import Isolation
from dormouse_operator.kubernetes import metrics
from dormouse_operator.kubernetes.api import access
from dormouse_operator.kubernetes.api.http import Api, HttpApi
from dormouse_operator.kubernetes.api.kinds import BUDGETS
from dormouse_operator.kubernetes.api.known import Objects
from dormouse_operator.kubernetes.control import Guard
from dormouse_operator.kubernetes.health import Health
from dormouse_operator.kubernetes.members.admitting import Admitting
from dormouse_operator.kubernetes.members.restarting import Restarting
from dormouse_operator.kubernetes.objects.applying import Applier
from dormouse_operator.kubernetes.objects.budgets import Budgets
from dormouse_operator.kubernetes.objects.credentials import Credentials
from dormouse_operator.kubernetes.objects.object_entries import ObjectEntries
from dormouse_operator.kubernetes.objects.replacements import Replacements
from dormouse_operator.kubernetes.objects.rotating import Rotating
from dormouse_operator.kubernetes.objects.tenants import Tenants
from dormouse_operator.kubernetes.options import Options
from dormouse_operator.kubernetes.pods.copies import Copies
from dormouse_operator.kubernetes.pods.losing import Losing
from dormouse_operator.kubernetes.pods.provider import KubernetesProvider
from dormouse_operator.kubernetes.pods.tending import Tending
from dormouse_operator.kubernetes.secret_options import Wanted
from dormouse_operator.kubernetes.secrets.keeping import Keeper
from dormouse_operator.kubernetes.secrets.objects import Secrets
from dormouse_operator.kubernetes.telling.own_events import OwnEvents
from dormouse_operator.kubernetes.telling.teller import Teller
from dormouse_operator.kubernetes.watching.claiming import Claiming, Seen, own_claim
from dormouse_operator.kubernetes.watching.defining import Defining
from dormouse_operator.kubernetes.watching.handlers import Watching
from dormouse_operator.kubernetes.watching.reconciling import Reconciler
from dormouse_operator.kubernetes.watching.serving import Serving
from dormouse_operator.kubernetes.watching.surveying import Survey
from dormouse_operator.leading import Leader
from dormouse_operator.marking import Marking
from dormouse_operator.space import Space

PREPARE = 1.0  # seconds between tries to prepare a store that is not there yet


class Term:
    """One leader and what it knows of its cluster."""

    def __init__(
        self,
        options: Options,
        api: Api,
        store: Store,
        space: Space,
        users: Users | None,
        keeper: Keeper | None,
        found: access.Access,
        election: int,
        own_events: OwnEvents,
    ) -> None:
        clock, keys, settings = SystemClock(), Keys(options.installation), options.functions
        self._clock = clock
        self.api = api
        self.copies = Copies(api, clock, settings, self._derived, self._pods)
        self.objects = Objects(clock, self._object, self._doubt)
        nodes = NodeLoss(options.node)
        self.provider = KubernetesProvider(api, clock, self.copies.pods, self.copies.deployments, self._refused, self._missing, nodes)
        self.copies.follow(self.provider)
        self.budgets = Budgets(api, clock, settings, self.copies.pods, self.copies.applied[BUDGETS], options.name)
        entries = ObjectEntries(store, keys, clock, election, tenant=Tenants(api).of)
        self.leader = Leader(
            store,
            clock,
            keys,
            self.provider,
            GrpcDialer(),
            leader_new=election,
            name=options.name,
            entries=entries,
            looked=self._looked,
            space=space,
            removal_wait=settings.removal_wait,
            rule=addresses.Rule(frozenset({options.listen, *options.store}), pods=True),
            vouch=self.provider.vouch,
            serves=lambda namespace: self.serving.served(namespace),
        )
        credentials = Credentials(users, keys, settings)
        self.replacements = Replacements(clock, self.copies.deployments, lambda: self.leader.starts.nodes, self._missing)
        self.serving = Serving(api, clock, settings, own_events, begun=self._begun, having=self._having)
        applier = Applier(api, settings, self.copies.applied, self.replacements)
        self.rotating = Rotating(clock, options, users, applier, self._doubt_applied, keeper)
        self.reconciler = Reconciler(
            clock,
            self.objects,
            entries,
            self.leader.registry,
            applier,
            credentials,
            Teller(api, clock, settings, options.name, lambda: self.defining.lacks),
            entry=self._entry,
            status=self.leader.status_of,
            waiting=self.provider.waiting,
            turn=self.leader.starts.waits,
            serves=self.serving.serves,
            began=self.leader.deletion_began,
        )
        self.watching = Watching(found, settings.namespaces, self.objects.heard)
        self.survey = Survey(
            api,
            clock,
            settings.namespaces,
            self.objects,
            self.reconciler,
            credentials,
            self.serving,
            registered=lambda: self.leader.view.functions,
            deaf=self.watching.restart,
        )
        self.marking = Marking(entries, clock, self.survey.whole)
        self.defining = Defining(api, clock, own_events)
        self.tending = Tending(api, clock, self.copies.pods, self.copies.deployments, self.provider, self._doubt_volumes)
        self.losing = Losing(api, clock, self.copies.pods, self.copies.deployments, self.leader.view, nodes, answers)
        metrics.list_age(lambda: clock.monotonic() - (self.objects.listed_at or 0.0))
        metrics.watch("functions", lambda: clock.monotonic() - self.objects.heard_at)
        for copy in self.copies.all:
            metrics.watch(copy.kind.plural, lambda copy=copy: clock.monotonic() - copy.heard_at)  # type: ignore[misc]  # a default binds it

    def loops(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        """To be run once the registry is known: an object must not be taken for new because its entry has not been read yet."""
        pods = (self.copies, self.serving, self.watching, self.survey, self.tending, self.losing, self.replacements)
        return [part.run for part in (*pods, self.budgets, self.rotating, self.marking, self.defining)]

    # ------------------------------------------------------------------------------------------------------------------ news

    def _object(self, key: tuple[str, str]) -> None:
        self.reconciler.nudge(key)

    def _begun(self, namespace: str) -> None:
        for key in self.objects.items:
            if key[0] == namespace:
                self.reconciler.nudge(key)

    def _having(self) -> list[str]:
        return [registered.entry.namespace for registered in self.leader.view.functions.values()]

    def _doubt(self) -> None:
        self.survey.doubt()

    def _derived(self, key: tuple[str, str], uid: str) -> None:
        self.reconciler.doubt(key, uid)

    def _pods(self) -> None:
        self.budgets.pods_changed()
        self.leader.view.judge_again(believed=False)

    def _looked(self, uid: str) -> None:
        entry = self._entry(uid)
        if entry is not None:
            self.reconciler.nudge((entry.namespace, entry.name))
        else:
            self.provider.forget(uid)

    def _refused(self, uid: str, revision: str) -> state_pb2.Problem | None:
        return self.reconciler.refused(uid, revision)

    def _missing(self, uid: str) -> None:
        entry = self._entry(uid)
        if entry is not None:
            self.reconciler.doubt((entry.namespace, entry.name), uid)

    def _doubt_volumes(self, uid: str) -> None:
        entry = self._entry(uid)
        if entry is not None:
            self.reconciler.doubt_all(entry)

    def _doubt_applied(self) -> None:
        for registered in self.leader.view.functions.values():
            self.reconciler.doubt_all(registered.entry)

    def _entry(self, uid: str) -> state_pb2.FunctionEntry | None:
        registered = self.leader.view.functions.get(uid)
        return registered.entry if registered is not None else None


async def run(options: Options, seen: Seen, alone: bool = False) -> int:
    """The exit code; `terms.CLOCK`: to be run again, `alone`; `terms.LOST`: to be run again. `seen`: what the process has found
    out so far of other installations."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    _open_files()
    health = Health()
    try:
        found = await access.find()
        await health.start(options.metrics)
    except DormouseError as error:
        log.warning("the operator cannot start", error=error.message)
        return 1
    password = terms.password(options)
    users = Users(options.store, password, tls=terms.tls(options)) if options.store_user else None
    store = EtcdStore(options.store, tls=terms.tls(options), user=options.store_user, password=password)
    members = EtcdMembers(options.store, tls=terms.tls(options), user=options.store_user, password=password)
    isolation = Isolation(shared=options.store_shared)
    space = Space(members, SystemClock(), options.store_quota, shared=options.functions.fair_shares, looked=isolation.look)
    api = HttpApi(found)
    own_events = OwnEvents(api, SystemClock(), options.functions.system_namespace, options.name)
    claiming = Claiming(api, SystemClock(), own_claim(options.functions), own_events, seen)
    health.kept_out = lambda: claiming.out or isolation.out
    value = state_pb2.Leader(address=options.listen, name=options.name).SerializeToString()
    election = Election(store, SystemClock(), Keys(options.installation).leader, value)
    store.on_rewound = lambda why: election.lost.set()  # what this process has copied of the store is of a history that is gone
    keeper = Keeper(api, SystemClock(), options.keeping.wanted, options.keeping.folder) if options.keeping is not None else None
    looking = [asyncio.create_task(space.run(lambda: election.leading), name="the store's space")]
    looking.append(asyncio.create_task(isolation.tell(own_events.warn), name="whether tenants are kept apart"))
    if keeper is not None:
        looking.append(asyncio.create_task(keeper.run(), name="the store's Secrets"))
    if options.keeping is not None and options.keeping.wanted.members is not None:
        looking.append(asyncio.create_task(_admit(options, options.keeping.wanted, api, own_events), name="the store's members"))
    if options.keeping is not None and (pods := options.keeping.wanted.pods) is not None:
        restarting = Restarting(api, SystemClock(), pods, options.keeping.wanted.namespace)
        looking.append(asyncio.create_task(restarting.run(), name="members that start again"))
    try:
        if not await terms.first(claiming.wait(), stop):
            return 0
        if users is not None and not await terms.first(_prepare(users, options, options.gateway_password()), stop):
            return 0
        if not await terms.first(isolation.sound(), stop):
            return 0
        if not await terms.campaigned(election, stop):
            return 0
        try:
            options = options.now()
        except OSError as error:
            log.warning("the store's certificates cannot be read", error=str(error))
            return 1
        term = Term(options, api, store, space, users, keeper, found, election.election, own_events)
        code = await _lead(term, claiming, isolation, election, health, stop, alone, options)
        if code == terms.CLOCK:
            await election.resign()
            leader = Keys(options.installation).leader
            return terms.LOST if await terms.followed(store, SystemClock(), leader, stop) else terms.CLOCK
        return code
    finally:
        for task in looking:
            task.cancel()
        await asyncio.gather(*looking, return_exceptions=True)
        await election.resign()
        await members.close()
        await api.close()
        await store.close()
        if users is not None:
            await users.close()
        await health.close()


async def _admit(options: Options, wanted: Wanted, api: Api, own_events: OwnEvents) -> None:
    """Never returns. From the start on, whoever leads: before there is a majority nobody does."""
    assert wanted.members is not None
    cluster = Membership(options.store, tls=terms.tls(options), user=options.store_user, password=terms.password(options))
    try:
        secrets = Secrets(api, wanted.namespace, wanted.labels)
        await Admitting(api, SystemClock(), cluster, secrets, wanted.members, wanted.namespace, own_events.warn).run()
    finally:
        await cluster.close()


def _open_files() -> None:
    """As many as this process may have: each watch of each namespace is one, and many systems begin with 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _lead(
    term: Term,
    claiming: Claiming,
    isolation: Isolation,
    election: Election,
    health: Health,
    stop: asyncio.Event,
    alone: bool,
    options: Options,
) -> int:
    health.trouble = term.survey.trouble
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(term.copies)
        stack.push_async_callback(term.reconciler.close)

        async def serve() -> services.Served:
            return await services.serve(term.leader, options.control, options.listen, server_options(), [Guard(term.api)])

        loops = [*term.loops(), claiming.run, isolation.broken]
        code = await terms.lead(term.leader, election, stop, serve, loops, alone=alone)
        if stop.is_set():
            await term.budgets.release()
        return code


async def _prepare(users: Users, options: Options, password: str) -> None:
    """Until the store has its users; it may start after us. `password`: the gateways'; empty: they have no user."""
    said = ""
    while True:
        try:
            if password:
                await store_users.prepare(users, Keys(options.installation), password)
            else:
                await users.prepare()
            return
        except StoreError as error:
            if str(error) != said:
                said = str(error)
                log.event("the store is not ready", error=said)
            await asyncio.sleep(PREPARE)
