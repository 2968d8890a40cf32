"""Gives members of etcd that have joined their vote, and tells people where the loss of one node would end the majority.

Every operator process does it: a member that joins may be what an election waits for, and to do it twice does no harm.
"""

from collections.abc import Awaitable, Callable
from typing import NoReturn, Protocol

from dormouse_core import members
from dormouse_core.members import Member
from dormouse_core.seams import Clock, StoreError
from dormouse_kit import log

from dormouse_operator.kubernetes.api.http import Api, ApiError
from dormouse_operator.kubernetes.api.kinds import PODS
from dormouse_operator.kubernetes.secret_options import Members
from dormouse_operator.kubernetes.secrets.objects import Secret, Secrets

REASON = "MembersShareANode"
LOOK = 5.0  # seconds
SOON = 1.0  # seconds, while one waits for its vote
KEY = "members"


class Cluster(Protocol):
    """As `dormouse_kit.etcd.membership.Membership`. StoreError: etcd refuses, or does not answer."""

    async def members(self) -> list[Member]: ...
    async def promote(self, member: int) -> bool: ...


class Admitting:
    """`secrets`: of `namespace`. `warn(reason, text)`: tells people; '': it holds no more."""

    def __init__(
        self,
        api: Api,
        clock: Clock,
        cluster: Cluster,
        secrets: Secrets,
        wanted: Members,
        namespace: str,
        warn: Callable[[str, str], Awaitable[None]],
    ) -> None:
        self._api = api
        self._clock = clock
        self._cluster = cluster
        self._secrets = secrets
        self._wanted = wanted
        self._namespace = namespace
        self._warn = warn
        self._said = ""

    async def run(self) -> NoReturn:
        while True:
            waiting = False
            try:
                waiting = await self.look()
                self._said = ""
            except (StoreError, ApiError) as error:
                self._say(str(error))
            except Exception as error:  # an error of ours must not end what a member waits for
                self._say(repr(error))
            await self._clock.sleep(SOON if waiting else LOOK)

    async def look(self) -> bool:
        """One round. Whether some member waits for its vote. StoreError. ApiError: nobody is given one."""
        await self._warn(REASON, members.crowded(await self._nodes()))
        found = await self._cluster.members()
        if members.several(found):
            await self._remember(found)
        waiting = False
        for member in members.candidates(found):
            if await self._cluster.promote(member.id):
                log.event("a member of the store has its vote", member=member.name)
            else:
                waiting = True
        return waiting

    async def _remember(self, found: list[Member]) -> None:
        """Before anybody beside the first has a vote: from then on one without data must not begin a cluster of its own."""
        secret = await self._secrets.get(self._wanted.secret, ours=False)
        if secret.found is None:
            await self._secrets.write(Secret(self._wanted.secret), {KEY: ", ".join(member.name for member in found if member.name)}, {})

    async def _nodes(self) -> dict[str, str]:
        listed = await self._api.list(PODS, self._namespace, labels=self._wanted.selector)
        return {pod["metadata"]["name"]: pod.get("spec", {}).get("nodeName", "") for pod in listed.items}

    def _say(self, error: str) -> None:
        if error != self._said:
            self._said = error
            log.event("the store's members cannot be looked after now; tried again", error=error)
