"""Whose a namespace is, where several tenants have some: its label `dormouse.dev/tenant`, which whoever makes namespaces sets.

A namespace that is deleted and made again under its name may be another tenant's by then, and sessions that were kept for its functions
must not be (rule *retained*). Its uid would not do: in a restored cluster it is another one, too.
"""

from dormouse_core.errors import Unavailable

from dormouse_operator.kubernetes.api.http import Api, ApiError
from dormouse_operator.kubernetes.api.kinds import NAMESPACES

LABEL = "dormouse.dev/tenant"


class Tenants:
    def __init__(self, api: Api) -> None:
        self._api = api

    async def of(self, namespace: str) -> str:
        """Empty: it has no such label. Unavailable: the API server does not say."""
        try:
            found = await self._api.get(NAMESPACES, "", namespace)
        except ApiError as error:
            raise Unavailable(f"whose the namespace {namespace} is cannot be read: {error.message}") from error
        return str((found["metadata"].get("labels") or {}).get(LABEL, ""))
