"""An etcd user for each function, there before its workers are, and gone after it.

Passwords are derived from one secret (`manifests.store_password`), so nothing is kept but in etcd, as a hash, and in the function's
Secret. A leader ensures each function's user once; after that only functions that come and go cost anything.
"""

from collections.abc import Callable, Collection

from dormouse_core.keys import Keys, function_of
from dormouse_core.seams import StoreError
from dormouse_kit import log
from dormouse_kit.etcd.users import Users
from dormouse_proto import state_pb2

from dormouse_operator import store_users
from dormouse_operator.kubernetes.objects.manifests import store_password, store_user, user_prefix
from dormouse_operator.kubernetes.settings import ClusterSettings


class Credentials:
    """`users` None: the store has no users, and nothing is to be done."""

    def __init__(self, users: Users | None, keys: Keys, settings: ClusterSettings) -> None:
        self._users = users
        self._keys = keys
        self._settings = settings
        self._ensured: set[str] = set()  # users' names

    async def ensure(self, entry: state_pb2.FunctionEntry) -> None:
        """StoreError: not done, or not known to be done."""
        name = store_user(entry, self._settings)
        if self._users is None or name in self._ensured:
            return
        function = function_of(entry)
        password = store_password(entry, self._settings)
        await self._users.ensure(name, password, store_users.function_grants(self._keys, function))
        self._ensured.add(name)

    async def prune(self, living: Callable[[], Collection[str]]) -> None:
        """Removes the users of functions that are none of `living()`: uids, asked after the users were listed. A function is registered
        before it gets its user, so one that is not living then was not being made either."""
        if self._users is None:
            return
        prefix = user_prefix(self._settings)
        names = await self._users.names(prefix)
        uids = living()
        for name in names:
            if name.removeprefix(prefix) in uids:
                continue
            try:
                await self._users.remove(name)
                self._ensured.discard(name)
                log.event("removed the store's user of a deleted function", user=name)
            except StoreError as error:
                log.event("the store's user of a deleted function could not be removed; tried again", user=name, error=str(error))
