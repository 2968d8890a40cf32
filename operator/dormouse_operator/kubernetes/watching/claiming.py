"""Keeping out of what another installation serves (`dormouse_core.claims`).

An installation that serves all namespaces has a ClusterRole, and only that has one: it is the claim. It goes with the release, and with its
change to some namespaces.
"""

from dormouse_core import claims
from dormouse_core.seams import Clock
from dormouse_kit import log

from dormouse_operator.kubernetes import metrics
from dormouse_operator.kubernetes.api.http import Api, ApiError
from dormouse_operator.kubernetes.api.kinds import CLUSTER_ROLES
from dormouse_operator.kubernetes.telling.own_events import OwnEvents

LABEL = "dormouse.dev/serves=all-namespaces"
REASON = "ServedByAnother"
OTHERS = "OthersKeepOut"
LOOK = 10.0  # seconds between looks


class Claiming:
    """`own`: the name of this installation's claim; '': it serves some namespaces, and nobody is asked."""

    def __init__(self, api: Api, clock: Clock, own: str, events: OwnEvents) -> None:
        self._api = api
        self._clock = clock
        self._own = own
        self._events = events
        self._refused = False
        self.out = "it is not known yet whether another installation serves all namespaces" if own else ""
        """Why this installation keeps out; '': it does not."""

    async def wait(self) -> None:
        """Until nobody else serves what it would."""
        while True:
            await self.look()
            if not self.out:
                return
            await self._clock.sleep(LOOK)

    async def run(self) -> None:
        """One of a term's loops; it returns, and ends the term, when this installation has to keep out."""
        while not self.out:
            await self._clock.sleep(LOOK)
            await self.look()

    async def look(self) -> None:
        """A list that could not be read changes nothing: who kept out goes on so, who serves does."""
        if not self._own:
            return
        try:
            listed = await self._api.list(CLUSTER_ROLES, labels=LABEL)
        except ApiError as error:
            await self._unknown(error)
            return
        found = [claims.Claim(item["metadata"]["name"], item["metadata"]["creationTimestamp"]) for item in listed.items]
        elder = claims.elder(self._own, found)
        self.out = "" if elder is None else _out(elder)
        metrics.OUT.set(elder is not None)
        younger = [claim.name for claim in claims.younger(self._own, found)]
        others = f"Installations that keep out of what this one serves: {', '.join(younger)}." if younger else ""
        await self._events.warn(REASON, self.out)
        await self._events.warn(OTHERS, others)

    async def _unknown(self, error: ApiError) -> None:
        """Without the right to look it serves, as it did before there was one; else it is asked again."""
        if error.code == 403:
            self.out = ""
        if not self._refused:
            self._refused = True
            log.warning("whether another installation serves all namespaces cannot be seen", error=error.message)


def _out(elder: claims.Claim) -> str:
    return (
        f"Another installation serves all namespaces since {elder.since} (ClusterRole {elder.name}). This one touches nothing until that "
        "is uninstalled, or serves some namespaces only: set namespaces in the values of one of them."
    )
