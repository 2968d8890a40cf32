"""Credentials that came from files and are replaced there while the operator leads.

Its own connections read them anew by themselves (`dormouse_kit.etcd.credentials`). What it hands on is handed on again here: the store's
certificates in functions' Secrets, from where the kubelet brings them to running workers; and the gateways' password, to the store.

Functions' passwords are derived from the operator's own as it was at the start of this process: they change when the next one starts.
"""

from collections.abc import Callable

from dormouse_core.keys import Keys
from dormouse_core.seams import Clock, StoreError
from dormouse_kit import log
from dormouse_kit.etcd.users import Users

from dormouse_operator import store_users
from dormouse_operator.kubernetes.objects.applying import Applier
from dormouse_operator.kubernetes.options import Options

INTERVAL = 5.0  # seconds


class Rotating:
    """`doubt()`: what every function consists of is to be looked at."""

    def __init__(self, clock: Clock, options: Options, users: Users | None, applier: Applier, doubt: Callable[[], None]) -> None:
        self._clock = clock
        self._options = options
        self._users = users
        self._applier = applier
        self._doubt = doubt
        self._gateways = options.gateway_password()

    async def run(self) -> None:
        """Never returns."""
        while True:
            await self._clock.sleep(INTERVAL)
            try:
                await self.look()
            except OSError as error:
                log.event("credentials cannot be read now; tried again", error=str(error))  # being replaced
            except StoreError as error:
                log.event("the gateways' new password could not be set; tried again", error=str(error))

    async def look(self) -> None:
        settings = self._options.settings_now()
        if settings != self._applier.settings:
            self._applier.settings = settings
            log.event("the store's certificates were replaced; functions' Secrets follow")
            self._doubt()
        password = self._options.gateway_password()
        if self._users is not None and password != self._gateways:
            await store_users.prepare(self._users, Keys(self._options.installation), password)
            self._gateways = password
            log.event("the gateways' password was replaced")
