"""Events about the operator itself: what keeps it from its work, where somebody looks who installs it."""

from dormouse_core.seams import Clock
from dormouse_kit import log

from dormouse_operator.kubernetes.api.http import Api, ApiError
from dormouse_operator.kubernetes.api.kinds import EVENTS
from dormouse_operator.kubernetes.telling.events import build_event


class OwnEvents:
    """Of the pod `pod` in `namespace`. Each sentence once in a row; the log says it, too."""

    def __init__(self, api: Api, clock: Clock, namespace: str, pod: str) -> None:
        self._api = api
        self._clock = clock
        self._namespace = namespace
        self._pod = pod
        self._said: dict[str, str] = {}

    async def warn(self, reason: str, message: str) -> None:
        """`message` '': what was said for this reason holds no more."""
        if self._said.get(reason, "") == message:
            return
        self._said[reason] = message
        if not message:
            log.event("what was warned of has gone", reason=reason)
            return
        log.warning(message, reason=reason)
        about = {"apiVersion": "v1", "kind": "Pod", "namespace": self._namespace, "name": self._pod}
        event = build_event(about, reason, message, warning=True, reporter=self._pod, now=self._clock.now())
        try:
            await self._api.create(EVENTS, event)
        except ApiError as error:
            log.event("an Event could not be created", reason=reason, error=error.message)
