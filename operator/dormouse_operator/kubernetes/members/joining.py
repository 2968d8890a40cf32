"""How a member of etcd starts: with its data, as the first of a cluster, or as one that joins.

Runs to its end before etcd does, which finds here what it cannot find out by itself. It may be ended anywhere and is begun again with
nothing but the disk and the cluster to go by: a member that was added and has not started is removed and added again, because nobody can
tell whether it copied something once.
"""

import asyncio
import json
import os
import secrets
import shutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dormouse_core import members
from dormouse_core.members import Answer, Do, Member, Unclear
from dormouse_core.seams import Clock, StoreError
from dormouse_kit import log
from dormouse_kit.etcd.log import has_log, own

AGAIN = 1.0  # seconds


class Cluster(Protocol):
    """As `dormouse_kit.etcd.membership.Membership`. StoreError: etcd refuses, or does not answer."""

    async def add_learner(self, url: str) -> list[Member]: ...
    async def remove(self, member: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Place:
    """`urls`: all members' that there are to be, for peers. `data`: etcd's folder. `formed`: a file that is there where it is remembered
    that there was a cluster of several, as the Secret `secret` does. `etcd`: its configuration, but for what is found here. `out`: where
    all of it is written."""

    name: str
    urls: Mapping[str, str]
    data: Path
    formed: Path
    secret: str
    etcd: Mapping[str, Any]
    out: Path


class Joining:
    def __init__(self, place: Place, cluster: Cluster, ask: Callable[[str], Awaitable[Answer | Unclear | None]], clock: Clock) -> None:
        self._place = place
        self._cluster = cluster
        self._ask = ask
        self._clock = clock
        self._said = ""
        self._stranger = False

    async def run(self) -> None:
        """Until etcd may be started."""
        while not await self._step():
            await self._clock.sleep(AGAIN)

    async def _step(self) -> bool:
        place = self._place
        data = has_log(place.data)
        others = [url for name, url in place.urls.items() if name != place.name]
        found = [answer for answer in await asyncio.gather(*map(self._ask, others)) if answer is not None]
        mine = own(place.data) if data else None
        step = members.plan(
            place.name,
            place.urls,
            found,
            data=data,
            formed=place.secret if place.formed.exists() else "",
            own=mine,
            stranger=self._stranger,
        )
        self._stranger = data and step.do is Do.WAIT
        self._say(step.do.value, step.why)
        try:
            match step.do:
                case Do.START:  # etcd looks at neither where it has its data, and ends where that is gone when it starts again
                    self._write("existing", f"{place.name}={place.urls[place.name]}")
                    return True
                case Do.FORM:  # under an id that no other cluster has: members of two that share one overwrite each other's log
                    token = f"{place.etcd.get('initial-cluster-token', '')}/{secrets.token_hex(8)}"
                    self._write("new", f"{place.name}={place.urls[place.name]}", {"initial-cluster-token": token})
                    return True
                case Do.REMOVE:
                    await self._cluster.remove(step.member)
                case Do.ADD:
                    joined = await self._cluster.add_learner(place.urls[place.name])
                    self._write("existing", members.initial(place.urls, joined))
                    return True
                case Do.WAIT:
                    pass
        except StoreError as error:
            self._say(f"{step.do.value}: not yet", str(error))
        return False

    def _write(self, state: str, cluster: str, more: Mapping[str, str] | None = None) -> None:
        """What has etcd form or join a cluster lies beside the log that it makes then, and goes with it: where the container alone starts
        again and finds its folder empty, it must not do so a second time, and ends for want of a configuration."""
        place = self._place
        text = json.dumps({**place.etcd, **(more or {}), "initial-cluster": cluster, "initial-cluster-state": state})
        new = place.out.with_name(f".{place.out.name}")
        new.unlink(missing_ok=True)
        if has_log(place.data):
            new.write_text(text)
        else:
            once = place.data / "member" / place.out.name
            shutil.rmtree(once.parent, ignore_errors=True)  # the rest of a start that did not get far, of which nobody has heard
            place.data.mkdir(mode=0o700, parents=True, exist_ok=True)
            once.parent.mkdir(mode=0o700)
            once.write_text(text)
            new.symlink_to(once)
        os.replace(new, place.out)

    def _say(self, what: str, why: str) -> None:
        """Once for each sentence in a row."""
        if (said := f"{what}: {why}") != self._said:
            self._said = said
            log.event(what, why=why, member=self._place.name)
