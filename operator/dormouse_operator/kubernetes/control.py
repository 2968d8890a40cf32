"""Who may ask at the operator's control port, which people reach by a port-forward: the API server says.

A call carries a bearer token in the metadata `authorization`. The token's user must be allowed to do to `inferencefunctions` what the call
asks, in the namespace that it names: TokenReview says who it is, SubjectAccessReview what they may. Sessions have names that their callers
chose, so whoever may not read a function may not list them either.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from dormouse_core.spec.objects import GROUP

from dormouse_operator.kubernetes.api.http import Api, ApiError, Object
from dormouse_operator.kubernetes.api.kinds import FUNCTIONS, Kind

TOKEN_REVIEWS = Kind("authentication.k8s.io/v1", "TokenReview", "tokenreviews")
ACCESS_REVIEWS = Kind("authorization.k8s.io/v1", "SubjectAccessReview", "subjectaccessreviews")

_VERBS = {"Get": "get", "Watch": "watch", "Sessions": "get", "Usage": "get", "Delete": "delete"}  # the others change something: update


@dataclass(frozen=True, slots=True)
class Refused(Exception):
    code: grpc.StatusCode
    message: str


class Guard(grpc.aio.ServerInterceptor):
    def __init__(self, api: Api) -> None:
        self._api = api

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        handler = await continuation(details)
        if handler is None:
            return None
        verb = _VERBS.get(details.method.rpartition("/")[2], "update")
        tokens = [value for name, value in details.invocation_metadata or () if name == "authorization"]

        if handler.unary_stream is not None:

            async def stream(request: Any, context: Any) -> Any:
                await self._pass(tokens, verb, request, context)
                async for response in handler.unary_stream(request, context):
                    yield response

            return grpc.unary_stream_rpc_method_handler(stream, handler.request_deserializer, handler.response_serializer)

        async def unary(request: Any, context: Any) -> Any:
            await self._pass(tokens, verb, request, context)
            return await handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(unary, handler.request_deserializer, handler.response_serializer)

    async def _pass(self, tokens: list[str], verb: str, request: Any, context: Any) -> None:
        """Aborts the call unless it may be made."""
        try:
            await self.check(tokens, verb, getattr(request, "namespace", ""), getattr(request, "name", ""))
        except Refused as refused:
            await context.abort(refused.code, refused.message)

    async def check(self, tokens: list[str], verb: str, namespace: str, name: str) -> None:
        """Refused: it may not be done. `namespace` empty: in all of them."""
        scheme, _, token = (tokens[0] if len(tokens) == 1 else "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Refused(
                grpc.StatusCode.UNAUTHENTICATED,
                "the metadata authorization: Bearer TOKEN is required, once; kubectl create token makes one",
            )
        try:
            user = await self._user(token)
            if not await self._allowed(user, verb, namespace, name):
                where = f"in namespace {namespace}" if namespace else "in all namespaces"
                raise Refused(grpc.StatusCode.PERMISSION_DENIED, f"{user['username']} may not {verb} {FUNCTIONS.plural} {where}")
        except ApiError as error:
            raise Refused(grpc.StatusCode.UNAVAILABLE, f"the API server cannot be asked who you are: {error.message}") from error

    async def _user(self, token: str) -> Object:
        review = {"apiVersion": TOKEN_REVIEWS.version, "kind": TOKEN_REVIEWS.name, "metadata": {}, "spec": {"token": token}}
        status = (await self._api.create(TOKEN_REVIEWS, review)).get("status", {})
        if not status.get("authenticated"):
            raise Refused(grpc.StatusCode.UNAUTHENTICATED, "the API server does not know this token")
        user: Object = status["user"]
        return user

    async def _allowed(self, user: Object, verb: str, namespace: str, name: str) -> bool:
        asked = {"group": GROUP, "resource": FUNCTIONS.plural, "verb": verb, "namespace": namespace, "name": name}
        spec = {
            "user": user.get("username", ""),
            "uid": user.get("uid", ""),
            "groups": user.get("groups", []),
            "extra": user.get("extra", {}),
            "resourceAttributes": asked,
        }
        review = {"apiVersion": ACCESS_REVIEWS.version, "kind": ACCESS_REVIEWS.name, "metadata": {}, "spec": spec}
        return bool((await self._api.create(ACCESS_REVIEWS, review)).get("status", {}).get("allowed"))
