"""Saying what happened to a function: in its object's status, as an Event of it, and in the log, all three in the same words."""

from collections.abc import Callable, Collection

from dormouse_core.seams import Clock
from dormouse_kit import log
from dormouse_proto import control_pb2

from dormouse_operator.kubernetes.api.http import Api, ApiError, Object
from dormouse_operator.kubernetes.api.kinds import EVENTS, FUNCTIONS
from dormouse_operator.kubernetes.settings import ClusterSettings
from dormouse_operator.kubernetes.telling import statuses
from dormouse_operator.kubernetes.telling.events import build_event
from dormouse_operator.kubernetes.telling.statuses import Said

SELDOM = 10.0  # seconds between writes of nothing but numbers that always change


class Teller:
    """`name`: this process, as Events name who reported them. `lacks`: fields that the cluster's definition does not have."""

    def __init__(
        self, api: Api, clock: Clock, settings: ClusterSettings, name: str, lacks: Callable[[], Collection[str]] = lambda: ()
    ) -> None:
        self._lacks = lacks
        self._api = api
        self._clock = clock
        self._settings = settings
        self._name = name
        self._written: dict[str, float] = {}  # uid -> when its status was last written, monotonic

    async def tell(self, found: Object, told: control_pb2.FunctionStatus | None, said: list[Said], generation: int) -> Object | None:
        """The object with its new status, which is about `generation`; None: nothing had to be written, or it is gone. ApiError: the server
        did not take it."""
        metadata = found["metadata"]
        wanted = statuses.build_status(found, told, said, self._settings, self._clock.now(), generation)
        for field in self._lacks():
            wanted.pop(field.removeprefix("status."), None)  # it would not be kept, and be written again at every look
        if not statuses.differs(found, wanted):
            return None
        now = self._clock.monotonic()
        recent = now - self._written.get(metadata["uid"], -SELDOM) < SELDOM
        if recent and not statuses.differs(found, wanted, steadily=True):
            return None
        # The uid makes the server refuse it if the name is another object's by now.
        changes = {"metadata": {"uid": metadata["uid"]}, "status": wanted}
        try:
            written = await self._api.patch(FUNCTIONS, metadata["namespace"], metadata["name"], changes, part="status")
        except ApiError as error:
            if error.missing or error.conflict:
                return None
            raise
        self._written[metadata["uid"]] = now
        for each in statuses.news(found, wanted):
            await self._event(found, each)
        before = (found.get("status") or {}).get("replicas")
        if told is not None and before != told.replicas and (before is not None or told.replicas):
            await self._event(found, Said("", "True", "WorkersWanted", f"Workers wanted: {told.replicas} ({told.reason})."))
        return written

    def forget(self, uid: str) -> None:
        self._written.pop(uid, None)

    async def _event(self, found: Object, said: Said) -> None:
        """An Event that cannot be made is no trouble: the status says the same."""
        metadata = found["metadata"]
        label = f"{metadata['namespace']}/{metadata['name']}"
        (log.warning if said.bad else log.event)(said.message, function=label, reason=said.reason)
        about = {
            "apiVersion": FUNCTIONS.version,
            "kind": FUNCTIONS.name,
            "namespace": metadata["namespace"],
            "name": metadata["name"],
            "uid": metadata["uid"],
        }
        event = build_event(about, said.reason, said.message, warning=said.bad, reporter=self._name, now=self._clock.now())
        try:
            await self._api.create(EVENTS, event)
        except ApiError as error:
            log.event("an Event could not be created", function=label, error=error.message)
