"""Whether this operator may lead: not over an etcd that tenants share and that does not keep its users apart (`storeversions`).

Every member is asked whenever the store's space is looked at, before the election and as long as the process runs: a member may be
replaced by an older one at any time. One that does not answer counts as it did last; of a store that never answered nothing is known, and
nobody leads over it anyway. What serves already is not stopped: sessions are where they are, and would not be safer for it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NoReturn

from dormouse_core import storeversions
from dormouse_core.seams import MemberSeen
from dormouse_kit import log

REASON = "StoreIsShared"


class Isolation:
    """`shared`: tenants share the store."""

    def __init__(self, *, shared: bool) -> None:
        self._shared = shared
        self._versions: dict[str, str] = {}
        self._refusal: str | None = None if shared else ""
        self._changed = asyncio.Event()

    @property
    def out(self) -> str:
        """Why this operator may not lead; '': it may."""
        return "it is not known yet whether the store keeps its users apart" if self._refusal is None else self._refusal

    def look(self, members: Sequence[MemberSeen]) -> None:
        """What they say now."""
        if not self._shared:
            return
        self._versions |= {member.endpoint: member.version for member in members}
        refusal = storeversions.refusal(self._versions)
        if refusal != self._refusal:
            if refusal:
                log.warning("this operator does not lead", reason=refusal)
            elif self._refusal:
                log.event("the store keeps its users apart", versions=", ".join(sorted(set(self._versions.values()))))
            self._refusal = refusal
            self._changed.set()

    async def sound(self) -> None:
        """Returns when nothing speaks against leading."""
        while self._refusal != "":
            await self._next()

    async def broken(self) -> None:
        """Returns when something does."""
        while not self._refusal:
            await self._next()

    async def tell(self, warn: Callable[[str, str], Awaitable[None]]) -> NoReturn:
        """Tells people: `warn(reason, text)`, '': it holds no more."""
        while True:
            said = self._refusal or ""
            await warn(REASON, said)
            if (self._refusal or "") == said:
                await self._next()

    async def _next(self) -> None:
        self._changed.clear()
        await self._changed.wait()
