"""`dormouse backup` and `dormouse restore`: of one machine's system, running or not, or of the store that `--store` names."""

import asyncio
import contextlib
import re
import time
from argparse import Namespace
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from dormouse_core import backups
from dormouse_core.errors import FailedPrecondition, InvalidArgument, Unavailable
from dormouse_core.keys import Keys
from dormouse_core.limits import ETCD_QUOTA_BYTES_MAX
from dormouse_core.seams import StoreError
from dormouse_kit.clock import SystemClock
from dormouse_kit.etcd import EtcdStore, TlsFiles, databases, snapshots
from dormouse_kit.etcd.connections import Connections
from dormouse_kit.etcd.users import ROOT, Users
from dormouse_kit.processes import Child

from dormouse import home, parts, places, printing
from dormouse.restoring import Restoring

STARTUP: Final = 30.0  # seconds until an etcd that was started answers
GRACE: Final = 5.0
SOME: Final = "Z.db"
NONE: Final = "Z-empty.db"  # the end of a name in a folder: without sessions

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reached:
    """How the store is reached: `Connections`' arguments."""

    endpoints: list[str]
    tls: TlsFiles | None = None
    user: str = ""
    password: Path | str = ""


def backup(options: Namespace) -> None:
    place = places.find(options.file)
    if options.keep and not place.folder:
        raise InvalidArgument(f"--keep: {options.keep} found, but {options.file} is no folder")
    stem = f"{_prefix(options.installation)}{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}"
    keys = Keys(options.installation)
    with place.new(f"{stem}{SOME}") as new:
        revision = _told(lambda: asyncio.run(_backup(options, new.path)))
        with databases.Database(new.path, keys.root) as snapshot:  # what cannot be read back is no backup
            found = backups.ordered(keys, snapshot.keys())
        size = new.path.stat().st_size
        if place.folder and not found.records:
            new.name = f"{stem}{NONE}"
    functions = sum(key.startswith(keys.functions) for key in found.last)
    written = place.text(new.name)
    printing.say(f"{written}: {functions} functions, {found.records} sessions at revision {revision}; {size} bytes")
    if place.folder and options.keep:
        _remove_old(place, options.installation, options.keep, new.name)


def _remove_old(place: places.Place, installation: str, keep: int, newest: str) -> None:
    """Of the newest one's kind, with sessions or without: however many a store that lost its data makes, the others stay."""
    names = _backups(place, installation)
    kind = NONE if newest.endswith(NONE) else SOME
    for old in [name for name in names if name.endswith(kind)][:-keep]:
        place.remove(old)
    kept = next((name for name in reversed(names) if name.endswith(SOME)), "")
    if kind == NONE and kept:
        printing.say(f"the new one has no session, and {place.text(kept)} has: for the new one none is removed that has")


def restore(options: Namespace) -> None:
    _prefix(options.installation)
    place = places.find(options.file)
    name = _chosen(place, options) if place.folder else ""
    with place.existing(name) as source, databases.Database(source, Keys(options.installation).root) as snapshot:
        _told(lambda: asyncio.run(_restore(options, place.text(name), snapshot)))


def _chosen(place: places.Place, options: Namespace) -> str:
    """The newest. InvalidArgument: there is none, or it has no session and another has: it may be of a store that had lost its data."""
    found = _backups(place, options.installation)
    if not found:
        missing = f"{_prefix(options.installation)}*.db"
        raise InvalidArgument(f"{options.file}: no backup of the installation {options.installation} found ({missing})")
    some = [name for name in found if name.endswith(SOME)]
    if some and found[-1] != some[-1]:
        older, newest = place.text(some[-1]), place.text(found[-1])
        raise InvalidArgument(
            f"{options.file}: the newest backup, {newest}, has no session, and {older} has some: name the file that is to be restored"
        )
    return found[-1]


def _prefix(installation: str) -> str:
    """InvalidArgument: no file can be named by it."""
    if not re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,60}[A-Za-z0-9])?", installation):
        raise InvalidArgument(f"--installation: {installation!r} found, up to 62 letters, digits, dots, dashes and underscores are allowed")
    return f"dormouse-{installation}-"


def _backups(place: places.Place, installation: str) -> list[str]:
    """The oldest first."""
    ours = re.compile(re.escape(_prefix(installation)) + r"\d{8}T\d{6}Z(-empty)?\.db")
    return sorted(name for name in place.names() if ours.fullmatch(name))


def _told(run: Callable[[], T]) -> T:
    try:
        return run()
    except OSError as error:
        raise InvalidArgument(f"{error.filename or 'a file'}: {error.strerror}") from error


async def _backup(options: Namespace, target: Path) -> int:
    async with _reached(options, alone=False) as reached:
        connections = Connections(reached.endpoints, reached.tls, reached.user, reached.password)
        try:
            return await snapshots.save(connections, target)
        except StoreError as error:
            raise Unavailable(f"no backup was made: {error}") from error
        finally:
            await connections.close()


async def _restore(options: Namespace, source: str, snapshot: databases.Database) -> None:
    async with _reached(options, alone=True) as reached:
        if reached.user == ROOT:  # a new etcd has no users yet
            users = Users(reached.endpoints, reached.password, tls=reached.tls)
            try:
                await users.prepare()
            except StoreError as error:
                raise Unavailable(f"nothing was restored: {error}") from error
            finally:
                await users.close()
        store = EtcdStore(reached.endpoints, tls=reached.tls, user=reached.user, password=reached.password)
        try:
            done = await Restoring(store, SystemClock(), Keys(options.installation), snapshot).run(replace=options.replace)
        finally:
            await store.close()
    printing.say(f"{source}: {done.functions} functions, {done.sessions} sessions restored, of revision {snapshot.newest}")


# ---------------------------------------------------------------------------------------------------------------------- the store


@contextlib.asynccontextmanager
async def _reached(options: Namespace, *, alone: bool) -> AsyncIterator[Reached]:
    """The store that the options name. `alone`: not one machine's while its system runs."""
    if options.store:
        ca, cert, key = (Path(path) if path else None for path in (options.store_ca, options.store_cert, options.store_key))
        tls = TlsFiles(ca, cert, key) if ca or cert else None
        password: Any = Path(options.store_password_file) if options.store_password_file else ""
        yield Reached(list(options.store), tls, options.store_user, password)
        return
    place = home.find(options.dir)
    run = _run(place)
    if run is not None:
        if alone:
            raise FailedPrecondition(f"`dormouse up` runs in {place.directory}, pid {run.pid}: stop it, restore, and start it again")
        yield Reached(run.store or [f"unix:{Path(run.control.removeprefix('unix:')).parent / parts.STORE}"])
        return
    async with _started(place, options.etcd, empty=alone) as endpoint:
        yield Reached([endpoint])


def _run(place: home.Home) -> home.Run | None:
    """None: nothing runs there."""
    try:
        return place.read_run()
    except Unavailable:
        return None


@contextlib.asynccontextmanager
async def _started(place: home.Home, binary: str, *, empty: bool) -> AsyncIterator[str]:
    """An etcd on what lies in `place`, for as long as this takes. `empty`: also where nothing does."""
    if not (empty or place.etcd.is_dir()):
        raise FailedPrecondition(f"{place.directory}: nothing is stored there; name a folder where `dormouse up` ran: --dir, DORMOUSE_DIR")
    place.prepare()
    path = parts.find_etcd(binary)
    with place.locked(), place.sockets() as sockets:
        child = await Child.start("etcd", parts.etcd(path, place.etcd, ETCD_QUOTA_BYTES_MAX), cwd=sockets)
        endpoint = f"unix:{sockets / parts.STORE}"
        try:
            ended = asyncio.create_task(child.wait())
            await _answers(endpoint, ended)
            yield endpoint
        finally:
            await child.stop(GRACE)


async def _answers(endpoint: str, ended: asyncio.Task[int]) -> None:
    """Unavailable: it does not, or has ended."""
    store = EtcdStore([endpoint])
    try:
        async with asyncio.timeout(STARTUP):
            while True:
                try:
                    await store.get([])
                    return
                except StoreError:
                    if ended.done():
                        raise Unavailable(f"the etcd that was started has ended with {ended.result()}; what it wrote says why") from None
                    await asyncio.sleep(0.1)
    except TimeoutError as error:
        raise Unavailable(f"the etcd that was started does not answer after {STARTUP:g} s") from error
    finally:
        await store.close()
