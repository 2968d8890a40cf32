"""One Secret, read and written. A write holds only for what was read: another operator may have been faster.

A Secret that this process has seen and that is gone since is made again as it was: etcd's data know its passwords.
"""

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from dormouse_core.errors import FailedPrecondition
from dormouse_kit import log

from dormouse_operator.kubernetes.api.http import Api, ApiError, Object
from dormouse_operator.kubernetes.api.kinds import SECRETS

RENEW = "dormouse.dev/renew"
"""Annotation, a person's: with another value what the Secret holds is replaced."""
RENEWED = "dormouse.dev/renewed"
"""Annotation: the value of RENEW that was carried out."""


@dataclass(frozen=True, slots=True)
class Secret:
    name: str
    texts: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    found: Object | None = None
    """As the API server has it; None: it is not there."""

    @property
    def asked(self) -> bool:
        return self.annotations.get(RENEW, "") != self.annotations.get(RENEWED, "")

    def answered(self) -> dict[str, str]:
        """The annotation that says that what was asked for is done."""
        return {RENEWED: self.annotations[RENEW]} if RENEW in self.annotations else {}

    def seconds(self, annotation: str) -> float | None:
        """None: it is not there, or is no time that can be."""
        try:
            found = float(self.annotations.get(annotation, ""))
        except ValueError:
            return None
        return found if math.isfinite(found) else None


class Secrets:
    """Of one namespace, by name. ApiError: whether it is there, or was written, is not known; a conflict where another was faster."""

    def __init__(self, api: Api, namespace: str, labels: Mapping[str, str]) -> None:
        self._api = api
        self._namespace = namespace
        self._labels = labels
        self._seen: dict[str, Secret] = {}

    async def get(self, name: str, *, ours: bool = True) -> Secret:
        """`ours`: made again where it was there and is gone. FailedPrecondition: it holds what is no text."""
        try:
            found = await self._api.get(SECRETS, self._namespace, name)
        except ApiError as error:
            if not error.missing:
                raise
            before = self._seen.get(name)
            if before is None or not ours:
                return Secret(name)
            log.warning("a Secret of the store is gone; it is made again as it was", secret=name)
            return await self.write(Secret(name), before.texts, before.annotations)
        return self._read(name, found)

    async def write(self, secret: Secret, texts: Mapping[str, str], annotations: Mapping[str, str]) -> Secret:
        """`annotations`: beside those that there are. Keys and metadata that are others' stay."""
        data = {key: base64.b64encode(text.encode()).decode() for key, text in texts.items()}
        if secret.found is None:
            metadata = {"name": secret.name, "namespace": self._namespace, "labels": dict(self._labels), "annotations": dict(annotations)}
            manifest = {"apiVersion": SECRETS.version, "kind": SECRETS.name, "metadata": metadata, "type": "Opaque", "data": data}
            return self._read(secret.name, await self._api.create(SECRETS, manifest))
        metadata = {**secret.found["metadata"], "annotations": {**secret.annotations, **annotations}}
        manifest = {**secret.found, "metadata": metadata, "data": {**secret.found.get("data", {}), **data}}
        return self._read(secret.name, await self._api.replace(SECRETS, manifest))

    async def remove(self, secret: Secret) -> None:
        if secret.found is not None:
            await self._api.delete(SECRETS, self._namespace, secret.name, uid=secret.found["metadata"]["uid"])

    def _read(self, name: str, found: Object) -> Secret:
        try:
            texts = {key: base64.b64decode(text).decode() for key, text in (found.get("data") or {}).items()}
        except ValueError as error:
            raise FailedPrecondition(f"the Secret {name}: {error}; text is allowed") from error
        secret = Secret(name, texts, found["metadata"].get("annotations") or {}, found)
        self._seen[name] = secret
        return secret
