"""Keeping out of what another installation serves (`dormouse_core.claims`).

An installation that serves all namespaces has a ClusterRole, and only that has one: it is the claim. It goes with the release, and with its
change to some namespaces.

Without the right to look an installation serves, as before there was such a right. But one refusal is no such thing: an API server that
starts refuses what it has no roles of yet.
"""

from dataclasses import dataclass

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
AGAIN = 1.0  # seconds before the next, of one that waits and could not see: it serves as soon as the API server answers
NO_RIGHT = 60.0  # seconds of refusals alone after which there is no such right


@dataclass(slots=True)
class Seen:
    """What a process has found out, over all of its terms."""

    listed: bool = False
    """There is the right to look."""
    refused: float | None = None
    """Monotonic: since when there have been refusals alone."""


class Claiming:
    """`own`: the name of this installation's claim; '': it serves some namespaces, and nobody is asked. `seen`: is changed."""

    def __init__(self, api: Api, clock: Clock, own: str, events: OwnEvents, seen: Seen) -> None:
        self._api = api
        self._clock = clock
        self._own = own
        self._events = events
        self._seen = seen
        self._warned = False
        self.out = "it is not known yet whether another installation serves all namespaces" if own else ""
        """Why this installation keeps out; '': it does not."""

    async def wait(self) -> None:
        """Until nobody else serves what it would."""
        while True:
            seen = await self.look()
            if not self.out:
                return
            await self._clock.sleep(LOOK if seen else AGAIN)

    async def run(self) -> None:
        """One of a term's loops; it returns, and ends the term, when this installation has to keep out."""
        while not self.out:
            await self._clock.sleep(LOOK)
            await self.look()

    async def look(self) -> bool:
        """False: the list could not be read, which changes nothing: who kept out goes on so, who serves does."""
        if not self._own:
            return True
        try:
            listed = await self._api.list(CLUSTER_ROLES, labels=LABEL)
        except ApiError as error:
            await self._unknown(error)
            return False
        self._seen.listed, self._seen.refused = True, None
        found = [claims.Claim(item["metadata"]["name"], item["metadata"]["creationTimestamp"]) for item in listed.items]
        elder = claims.elder(self._own, found)
        self.out = "" if elder is None else _out(elder)
        metrics.OUT.set(elder is not None)
        younger = [claim.name for claim in claims.younger(self._own, found)]
        others = f"Installations that keep out of what this one serves: {', '.join(younger)}." if younger else ""
        await self._events.warn(REASON, self.out)
        await self._events.warn(OTHERS, others)
        return True

    async def _unknown(self, error: ApiError) -> None:
        """Without the right to look it serves; else it is asked again."""
        if error.code != 403:
            self._seen.refused = None
        elif self._seen.refused is None:
            self._seen.refused = self._clock.monotonic()
        elif not self._seen.listed and self._clock.monotonic() - self._seen.refused >= NO_RIGHT:
            self.out = ""
        if not self._warned:
            self._warned = True
            log.warning("whether another installation serves all namespaces cannot be seen", error=error.message)


def _out(elder: claims.Claim) -> str:
    return (
        f"Another installation serves all namespaces since {elder.since} (ClusterRole {elder.name}). This one touches nothing until that "
        "is uninstalled, or serves some namespaces only: set namespaces in the values of one of them."
    )
