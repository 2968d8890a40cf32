"""Keeping out of what another installation takes for its own (`dormouse_core.claims`).

An installation that serves all namespaces, or chooses them by their labels, has a ClusterRole, and only those have one: it is the claim. It
goes with the release, and with its change to a list of namespaces.

Without the right to look an installation serves, as before there was such a right. But one refusal is no such thing: an API server that
starts refuses what it has no roles of yet.
"""

from dataclasses import dataclass

from dormouse_core import claims
from dormouse_core.seams import Clock
from dormouse_kit import log

from dormouse_operator.kubernetes import metrics
from dormouse_operator.kubernetes.api.http import Api, ApiError, Object
from dormouse_operator.kubernetes.api.kinds import CLUSTER_ROLES
from dormouse_operator.kubernetes.objects import names
from dormouse_operator.kubernetes.settings import ClusterSettings
from dormouse_operator.kubernetes.telling.own_events import OwnEvents

LABEL = "dormouse.dev/serves"
EVERYWHERE = "all-namespaces"
"""The label's value; another one: some namespaces."""
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
    """`own`: this installation's claim; None: it has rights in a list of namespaces, and nobody is asked. `seen`: is changed."""

    def __init__(self, api: Api, clock: Clock, own: claims.Claim | None, events: OwnEvents, seen: Seen) -> None:
        self._api = api
        self._clock = clock
        self._own = own
        self._events = events
        self._seen = seen
        self._warned = False
        self.out = "it is not known yet whether another installation serves what this one would" if own is not None else ""
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
        if self._own is None:
            return True
        try:
            listed = await self._api.list(CLUSTER_ROLES, labels=LABEL)
        except ApiError as error:
            await self._unknown(error)
            return False
        self._seen.listed, self._seen.refused = True, None
        found = [_claim(item) for item in listed.items]
        elder = claims.elder(self._own, found)
        self.out = "" if elder is None else _out(self._own, elder)
        metrics.OUT.set(elder is not None)
        younger = [claim.name for claim in claims.younger(self._own, found)]
        others = f"Installations that keep out for this one: {', '.join(younger)}." if younger else ""
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
            log.warning("whether another installation serves what this one would cannot be seen", error=error.message)


def own_claim(settings: ClusterSettings) -> claims.Claim | None:
    return claims.Claim(settings.claim, settings.installation, not settings.namespace_selector) if settings.claim else None


def _claim(found: Object) -> claims.Claim:
    metadata = found["metadata"]
    labels = metadata["labels"]
    return claims.Claim(
        metadata["name"], labels.get(names.INSTALLATION, ""), labels[LABEL] == EVERYWHERE, since=metadata["creationTimestamp"]
    )


def _out(own: claims.Claim, elder: claims.Claim) -> str:
    if not (own.everywhere and elder.everywhere):
        return (
            f"Another installation is called {elder.installation}, too, since {elder.since} (ClusterRole {elder.name}): each would take "
            "the other's objects for its own. This one touches nothing until that is uninstalled, or one of them has another name: set "
            "installation in its values."
        )
    return (
        f"Another installation serves all namespaces since {elder.since} (ClusterRole {elder.name}). This one touches nothing until that "
        "is uninstalled, or serves some namespaces only: set namespaces in the values of one of them."
    )
