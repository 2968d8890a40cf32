"""Whether the cluster's definition of InferenceFunctions has the fields that this operator knows.

Helm upgrades the definition with the chart, but it may be installed otherwise, or be kept back. What it lacks is dropped in silence:
people's fields have no effect, and the status does not say what it should. So the operator says so, and which. The API server publishes its
schemas to every client, so that no right is needed.
"""

from dormouse_core.seams import Clock
from dormouse_core.spec import definitions
from dormouse_core.spec.objects import GROUP, KIND, VERSION
from dormouse_kit import log

from dormouse_operator.kubernetes import metrics
from dormouse_operator.kubernetes.api.http import Api, ApiError
from dormouse_operator.kubernetes.telling.own_events import OwnEvents

PATH = f"/openapi/v3/apis/{GROUP}/{VERSION}"
REASON = "DefinitionOutdated"
LOOK = 60.0  # seconds between looks
NAMED = 20  # fields that are named; of more it is said how many


class Defining:
    def __init__(self, api: Api, clock: Clock, events: OwnEvents) -> None:
        self._api = api
        self._clock = clock
        self._events = events
        self._failing = False
        self.lacks: tuple[str, ...] = ()
        """As it was when it was last known."""

    async def run(self) -> None:
        """Never returns."""
        while True:
            await self.look()
            await self._clock.sleep(LOOK)

    async def look(self) -> None:
        """What cannot be read says nothing."""
        try:
            document = await self._api.document(PATH)
        except ApiError as error:
            if not self._failing:
                log.event("the definition of functions cannot be read", error=error.message)
            self._failing = True
            return
        self._failing = False
        served = definitions.schema_of(document, GROUP, VERSION, KIND)
        if served is None:
            return
        self.lacks = tuple(definitions.lacks(served))
        metrics.LACKS.set(len(self.lacks))
        await self._events.warn(REASON, _sentence(self.lacks))


def _sentence(lacks: tuple[str, ...]) -> str:
    if not lacks:
        return ""
    more = f" and {len(lacks) - NAMED} more" if len(lacks) > NAMED else ""
    return (
        f"The cluster's definition of {KIND} is older than this operator: the API server drops {', '.join(lacks[:NAMED])}{more}, whatever "
        "is applied. Apply the definition of this release (crds/inferencefunctions.yaml; Helm: crds.install)."
    )
