"""The Secrets of the chart's etcd, kept as `certificates` and `passwords` of the core say, and their texts in files of this pod.

Every operator process does it, who leads or not: etcd may be away for want of a certificate, and then nobody leads. A write holds only for
what was read, so of several processes one does each step. What only root can do, setting a password in etcd, is left to who leads:
`settling` says what is to be set, and `settled` that it is.
"""

import contextlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from dormouse_core import passwords
from dormouse_core.errors import DormouseError, FailedPrecondition
from dormouse_core.seams import Clock
from dormouse_kit import log

from dormouse_operator.kubernetes.api.http import Api, ApiError
from dormouse_operator.kubernetes.secret_options import Wanted
from dormouse_operator.kubernetes.secrets.issuing import SINCE, Issuing
from dormouse_operator.kubernetes.secrets.objects import Secret, Secrets

INTERVAL = 10.0  # seconds
AGAIN = 1.0  # seconds, until all are there for the first time
CHANGED = "dormouse.dev/changed"
"""Annotation: when the passwords last changed, in seconds since the epoch."""


class Keeper:
    """`folder`: gets `tls/ca.crt` and a file in `users/` for each password."""

    def __init__(self, api: Api, clock: Clock, wanted: Wanted, folder: Path) -> None:
        self._clock = clock
        self._wanted = wanted
        self._folder = folder
        self._secrets = Secrets(api, wanted.namespace, wanted.labels)
        self._issuing = Issuing(api, clock, wanted, self._secrets)
        self._said: tuple[str, str] | None = None
        self._passwords: Secret | None = None
        self._settling = False

    @property
    def settling(self) -> Mapping[str, str]:
        """By key, the passwords that are to be set in etcd now; empty: none."""
        if not self._settling or self._passwords is None:
            return {}
        return {key: passwords.lines(self._passwords.texts[key])[0] for key in passwords.USERS}

    async def settled(self) -> None:
        """They are set. ApiError: that could not be written down, and they are to be set again."""
        assert self._passwords is not None
        await self._write_passwords(self._passwords, passwords.settled(self._passwords.texts))
        self._settling = False
        self._write_files()
        log.event("the store's passwords were replaced", secret=self._passwords.name)

    async def first(self) -> None:
        """Until all Secrets are there and in the files. What an earlier release made is taken over here alone, before an operator starts:
        one that runs sees those Secrets again at a rollback, when they are what the pods of that release wait for."""
        while not await self.look(adopting=True):
            await self._clock.sleep(AGAIN)

    async def run(self) -> None:
        """Never returns."""
        while True:
            await self._clock.sleep(INTERVAL)
            await self.look()

    async def look(self, *, adopting: bool = False) -> bool:
        """One round. False: not done; why is in the log, once."""
        try:
            if adopting:
                await self._adopt()
            await self._keep()
        except ApiError as error:
            if not error.conflict:
                self._say("the store's Secrets cannot be looked after now; tried again", error.message)
            return False
        except (DormouseError, OSError) as error:
            self._say("the store's Secrets are not as they must be; tried again", str(error))
            return False
        except Exception as error:  # what somebody wrote into a Secret must not end this loop, on which every part's way to etcd depends
            self._say("looking after the store's Secrets failed; tried again", repr(error))
            return False
        self._said = None
        return True

    async def _keep(self) -> None:
        await self._issuing.keep()
        self._passwords = await self._kept_passwords()
        self._write_files()

    # ------------------------------------------------------------------------------------------------------------------ steps

    async def _adopt(self) -> None:
        """What the templates of an earlier release made is copied, and removed only then. It wins over what is there: while it exists, or
        does again after a rollback, it is what etcd's data and everybody's files agree with. It may not stay: Helm would refuse to go
        back to a release whose objects it finds without knowing them."""
        for wanted in (self._wanted.certificates, self._wanted.passwords):
            found = await self._secrets.get(wanted.before, ours=False) if wanted.before else Secret("")
            if found.found is None:
                continue
            texts = dict(found.texts)
            if texts.get(passwords.ROOT):
                texts[passwords.WORKERS] = texts[passwords.ROOT]
            dates = {CHANGED: f"{self._clock.now():.0f}", SINCE: ""}
            await self._secrets.write(await self._secrets.get(wanted.secret), texts, dates)
            await self._secrets.remove(found)
            log.event("a Secret of an earlier release was taken over", secret=wanted.before, into=wanted.secret)

    async def _kept_passwords(self) -> Secret:
        wanted, now = self._wanted.passwords, self._clock.now()
        secret = await self._secrets.get(wanted.secret, ours=wanted.ours)
        if not wanted.ours:
            lacking = [key for key in passwords.USERS if not passwords.lines(secret.texts.get(key, ""))]
            if lacking:
                raise FailedPrecondition(f"the Secret {wanted.secret} lacks the key {lacking[0]} (etcd.users.existingSecret)")
            return secret
        for _ in range(len(passwords.Do)):
            texts = {key: secret.texts.get(key, "") for key in passwords.KEYS}
            step = passwords.plan(passwords.Observed(texts, secret.seconds(CHANGED), secret.asked), wanted.days, now)
            fresh = {key: secrets.token_urlsafe(32) for key in passwords.KEYS}
            self._settling = step is passwords.Do.SETTLE
            if step is passwords.Do.MAKE:
                secret = await self._write_passwords(secret, passwords.made(texts, fresh))
                log.event("passwords for the store were made", secret=secret.name)
            elif step is passwords.Do.DATE:
                secret = await self._write_passwords(secret, texts)
            elif step is passwords.Do.BEGIN:
                secret = await self._write_passwords(secret, passwords.begun(texts, fresh), secret.answered())
                log.event("the store's passwords are being replaced: the new ones are valid beside those before", secret=secret.name)
            else:
                break
        return secret

    async def _write_passwords(self, secret: Secret, texts: Mapping[str, str], more: Mapping[str, str] | None = None) -> Secret:
        self._passwords = await self._secrets.write(secret, texts, {CHANGED: f"{self._clock.now():.0f}", **(more or {})})
        return self._passwords

    # ------------------------------------------------------------------------------------------------------------------ files

    def _write_files(self) -> None:
        assert self._passwords is not None
        files = {Path("tls", "ca.crt"): self._issuing.trusted}
        files |= {Path("users", key): text for key, text in self._passwords.texts.items() if key in passwords.KEYS}
        for path, text in files.items():
            _replace(self._folder / path, text)

    def _say(self, what: str, why: str) -> None:
        if (what, why) != self._said:
            self._said = (what, why)
            log.warning(what, error=why)


def _replace(path: Path, text: str) -> None:
    """Whoever reads it meanwhile reads the one before."""
    with contextlib.suppress(OSError):
        if path.read_text() == text:
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    new.rename(path)
