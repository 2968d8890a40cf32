"""etcd's server certificate and its authority, step by step as `dormouse_core.certificates` says."""

import datetime

from dormouse_core import certificates
from dormouse_core.certificates import Authority, Do, Observed, Server, Step
from dormouse_core.errors import DormouseError, FailedPrecondition
from dormouse_core.limits import AUTHORITY_DAYS
from dormouse_core.seams import Clock
from dormouse_kit import log

from dormouse_operator.kubernetes.api.http import Api
from dormouse_operator.kubernetes.api.kinds import PODS
from dormouse_operator.kubernetes.secret_options import Wanted
from dormouse_operator.kubernetes.secrets import signing
from dormouse_operator.kubernetes.secrets.objects import Secret, Secrets
from dormouse_operator.kubernetes.secrets.signing import Pair

SINCE = "dormouse.dev/trusted-since"
"""Annotation: when the authority joined ca.crt, in seconds since the epoch."""
_CA, _CA_KEY, _CERTIFICATE, _KEY = "ca.crt", "ca.key", "tls.crt", "tls.key"


class Issuing:
    """`trusted`: what clients check etcd against."""

    def __init__(self, api: Api, clock: Clock, wanted: Wanted, secrets: Secrets) -> None:
        self._api = api
        self._clock = clock
        self._namespace = wanted.namespace
        self._wanted = wanted.certificates
        self._secrets = secrets
        self._waits = ""
        self.trusted = ""

    async def keep(self) -> None:
        """Until nothing is left to be done now. ApiError. FailedPrecondition: a Secret holds what it must not; it is left as it is."""
        wanted = self._wanted
        secret = await self._secrets.get(wanted.secret, ours=bool(wanted.authority))
        if not wanted.authority:
            lacking = [key for key in (_CA, _CERTIFICATE, _KEY) if not secret.texts.get(key)]
            if lacking:
                raise FailedPrecondition(f"the Secret {secret.name} lacks the key {lacking[0]} (etcd.certificates.existingSecret)")
            self.trusted = secret.texts[_CA]
            return
        authority = await self._secrets.get(wanted.authority)
        for _ in range(len(Do)):
            now = self._clock.now()
            found = _observed(secret, authority)
            several = bool(wanted.members)
            if several and found.server is not None and found.authority is not None and found.server.issuer != found.authority.id:
                found = _with_members(found, await self._started())
            step = certificates.plan(found, wanted.hosts, several, now)
            if step.do is Do.AUTHORITY:
                made = signing.make_authority(wanted.authority, AUTHORITY_DAYS, now)
                texts = {_CA: made.certificate, _CA_KEY: made.key}
                authority = await self._secrets.write(authority, texts, authority.answered())
            elif step.do in (Do.NOTHING, Do.WAIT):
                self._wait(step)
                break
            else:
                secret = await self._write(secret, authority, step, now)
            log.event(f"etcd's certificates: {step.do.value}", why=step.why, secret=wanted.secret)
        self.trusted = secret.texts[_CA]

    async def _write(self, secret: Secret, authority: Secret, step: Step, now: float) -> Secret:
        """One step, of `secret` alone and so all at once."""
        trusted = signing.identified(secret.texts[_CA]) if secret.texts.get(_CA) else {}
        texts, annotations = dict[str, str](), dict[str, str]()
        if step.do is Do.FORGET:
            trusted = {key: text for key, text in trusted.items() if key not in step.ids}
        elif step.do is Do.TRUST or not signing.identified(authority.texts[_CA]).keys() <= trusted.keys():
            trusted |= signing.identified(authority.texts[_CA])
            annotations[SINCE] = f"{now:.0f}"
        if step.do is Do.ISSUE:
            pair = Pair(authority.texts[_CA], authority.texts[_CA_KEY])
            made = signing.issue(pair, self._wanted.secret, self._wanted.hosts, self._wanted.days, now)
            texts |= {_CERTIFICATE: made.certificate, _KEY: made.key}
            annotations |= secret.answered()
        return await self._secrets.write(secret, {**texts, _CA: "".join(trusted.values())}, annotations)

    async def _started(self) -> tuple[float, ...] | None:
        """When each member's container started; None: one of them does not run, and will read what there is then, or it is not known."""
        found = (await self._api.list(PODS, self._namespace, labels=self._wanted.members)).items
        states = [status["state"] for pod in found for status in pod.get("status", {}).get("containerStatuses", [])]
        running = [state["running"]["startedAt"] for state in states if "running" in state]
        if not found or len(running) < len(found):
            return None
        return tuple(datetime.datetime.fromisoformat(each).timestamp() for each in running)

    def _wait(self, step: Step) -> None:
        if step.why != self._waits:
            self._waits = step.why
            if step.do is Do.WAIT:
                log.event("etcd's server certificate is to be replaced, and waits", why=step.why)


def _observed(secret: Secret, authority: Secret) -> Observed:
    """FailedPrecondition: what is there cannot be read."""
    try:
        trusted = signing.identified(secret.texts[_CA]) if secret.texts.get(_CA) else {}
        server = None
        if secret.texts.get(_CERTIFICATE):
            pem = secret.texts[_CERTIFICATE]
            issuer = signing.issuer_of(pem, trusted.values())
            server = Server(issuer, signing.lifetime(pem), signing.hosts_of(pem), secret.asked)
    except DormouseError as error:
        raise FailedPrecondition(f"the Secret {secret.name}: {error}; delete it to have it made again") from error
    return Observed(
        _authority(authority),
        {key: signing.lifetime(text) for key, text in trusted.items()},
        secret.seconds(SINCE),
        server,
    )


def _authority(secret: Secret) -> Authority | None:
    if not secret.texts.get(_CA) or not secret.texts.get(_CA_KEY):
        return None
    try:
        [key] = signing.identified(secret.texts[_CA])
        return Authority(key, signing.lifetime(secret.texts[_CA]), secret.asked)
    except (DormouseError, ValueError) as error:
        raise FailedPrecondition(f"the Secret {secret.name}: {error}; one certificate in PEM is allowed") from error


def _with_members(found: Observed, members: tuple[float, ...] | None) -> Observed:
    return Observed(found.authority, found.trusted, found.trusted_since, found.server, members)
