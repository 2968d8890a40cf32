"""Credentials that came from files and are replaced there while the operator leads.

Its own connections read them anew by themselves (`dormouse_kit.etcd.credentials`). What it hands on is handed on again here: the store's
certificates in functions' Secrets, from where the kubelet brings them to running workers; and passwords, to the store: the gateways' that
somebody else put into the file, and those that are replaced by ourselves (`secrets.keeping`).

What functions' passwords are derived from is as it was at the start of this process: they change when the next one starts.
"""

from collections.abc import Callable

from dormouse_core import passwords
from dormouse_core.keys import Keys
from dormouse_core.seams import Clock, StoreError
from dormouse_kit import log
from dormouse_kit.etcd.users import ROOT, Users

from dormouse_operator import store_users
from dormouse_operator.kubernetes.api.http import ApiError
from dormouse_operator.kubernetes.objects.applying import Applier
from dormouse_operator.kubernetes.options import Options
from dormouse_operator.kubernetes.secrets.keeping import Keeper

INTERVAL = 5.0  # seconds


class Rotating:
    """`doubt()`: what every function consists of is to be looked at. `keeper` None: somebody else keeps the store's Secrets."""

    def __init__(
        self,
        clock: Clock,
        options: Options,
        users: Users | None,
        applier: Applier,
        doubt: Callable[[], None],
        keeper: Keeper | None = None,
    ) -> None:
        self._clock = clock
        self._options = options
        self._users = users
        self._applier = applier
        self._doubt = doubt
        self._keeper = keeper
        self._gateways = options.gateway_password()

    async def run(self) -> None:
        """Never returns."""
        while True:
            await self._clock.sleep(INTERVAL)
            try:
                await self.look()
            except OSError as error:
                log.event("credentials cannot be read now; tried again", error=str(error))  # being replaced
            except (StoreError, ApiError) as error:
                log.event("a new password could not be set; tried again", error=str(error))

    async def look(self) -> None:
        settings = self._options.settings_now()
        if settings != self._applier.settings:
            self._applier.settings = settings
            log.event("the store's certificates were replaced; functions' Secrets follow")
            self._doubt()
        if self._users is not None and self._keeper is not None and self._keeper.settling:
            await self._settle(self._users, self._keeper)
        password = self._options.gateway_password()
        if self._users is not None and password != self._gateways:
            await store_users.prepare(self._users, Keys(self._options.installation), password)
            self._gateways = password
            log.event("the gateways' password was replaced")

    async def _settle(self, users: Users, keeper: Keeper) -> None:
        """Root's own comes last: it is the one that says who may set the others."""
        new = keeper.settling
        await users.change(store_users.gateway_user(Keys(self._options.installation)), new[passwords.GATEWAY])
        await users.change(ROOT, new[passwords.ROOT])
        await keeper.settled()
        self._gateways = new[passwords.GATEWAY]
