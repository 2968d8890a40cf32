"""Who may ask at the control port: a bearer token, once, of somebody whom the API server knows and lets do it."""

from typing import Any

import grpc
import grpc.aio
import pytest
from dormouse_operator.kubernetes.api.http import ApiError, Object
from dormouse_operator.kubernetes.api.kinds import Kind
from dormouse_operator.kubernetes.control import Guard, Refused
from dormouse_testing.memory_api import MemoryApi

USER = {"username": "anna", "uid": "7", "groups": ["team"], "extra": {"scopes": ["a"]}}
BEARER = ("authorization", "Bearer good")
CODE = grpc.StatusCode


class Reviewing(MemoryApi):
    """Knows the token "good", and lets its user do what is in `allowed`: (verb, namespace)."""

    def __init__(self, *allowed: tuple[str, str]) -> None:
        super().__init__()
        self.allowed = allowed
        self.asked: list[Object] = []

    async def create(self, kind: Kind, manifest: Object) -> Object:
        self._ask()
        spec = manifest["spec"]
        self.asked.append(spec)
        if kind.name == "TokenReview":
            known = spec["token"] == "good"
            return {"status": {"authenticated": known, "user": USER} if known else {"error": "no such token"}}
        asked = spec["resourceAttributes"]
        return {"status": {"allowed": (asked["verb"], asked["namespace"]) in self.allowed}}


async def checked(*tokens: str, api: Reviewing | None = None, verb: str = "get", namespace: str = "ns") -> Refused | None:
    try:
        await Guard(api or Reviewing(("get", "ns"))).check(list(tokens), verb, namespace, "f")
    except Refused as refused:
        return refused
    return None


@pytest.mark.parametrize("token", ["Bearer good", "bearer good", "BEARER good"])
async def test_a_known_token_of_somebody_who_may_passes(token: str) -> None:
    assert await checked(token) is None


@pytest.mark.parametrize("tokens", [(), ("",), ("good",), ("Basic good",), ("Bearer",), ("Bearer ",), ("Bearer good", "Bearer good")])
async def test_without_one_bearer_token_nobody_is_asked_who_it_is(tokens: tuple[str, ...]) -> None:
    """Two of them: which one a proxy in front of us went by is not known."""
    api = Reviewing(("get", "ns"))
    refused = await checked(*tokens, api=api)
    assert refused is not None
    assert (refused.code, "Bearer TOKEN is required, once" in refused.message) == (CODE.UNAUTHENTICATED, True)
    assert api.asked == []


@pytest.mark.parametrize("token", ["Bearer bad", "Bearer  good", "Bearer good "])
async def test_a_token_that_the_server_does_not_know_is_nobodys(token: str) -> None:
    refused = await checked(token)
    assert refused is not None
    assert (refused.code, refused.message) == (CODE.UNAUTHENTICATED, "the API server does not know this token")


@pytest.mark.parametrize(
    ("verb", "namespace", "text"),
    [
        ("delete", "ns", "anna may not delete inferencefunctions in namespace ns"),
        ("get", "other", "anna may not get inferencefunctions in namespace other"),
        ("get", "", "anna may not get inferencefunctions in all namespaces"),
    ],
)
async def test_who_may_not_is_told_what_and_where(verb: str, namespace: str, text: str) -> None:
    refused = await checked("Bearer good", verb=verb, namespace=namespace)
    assert refused is not None
    assert (refused.code, refused.message) == (CODE.PERMISSION_DENIED, text)


async def test_the_server_is_asked_about_the_tokens_user_with_all_that_it_is() -> None:
    """Groups and scopes too: a rule may be bound to them."""
    api = Reviewing(("get", "ns"))
    await checked("Bearer good", api=api)
    review = api.asked[1]
    assert {name: review[name] for name in ("user", "uid", "groups", "extra")} == {
        "user": "anna", "uid": "7", "groups": ["team"], "extra": {"scopes": ["a"]},
    }  # fmt: skip
    assert review["resourceAttributes"] == {
        "group": "dormouse.dev", "resource": "inferencefunctions", "verb": "get", "namespace": "ns", "name": "f",
    }  # fmt: skip


@pytest.mark.parametrize("error", [ApiError(0, "NoAnswer", "away"), ApiError(403, "Forbidden", "no right to review")])
async def test_a_server_that_cannot_be_asked_lets_nobody_in(error: ApiError) -> None:
    api = Reviewing(("get", "ns"))
    api.refuse = error
    refused = await checked("Bearer good", api=api)
    assert refused is not None
    assert (refused.code, error.message in refused.message) == (CODE.UNAVAILABLE, True)


# ------------------------------------------------------------------------------------------------------------------ calls


class Request:
    namespace, name = "ns", "f"


class Details:
    def __init__(self, method: str, metadata: Any) -> None:
        self.method, self.invocation_metadata = f"/dormouse.control.Control/{method}", metadata


class Aborted(Exception):
    pass


class Context:
    async def abort(self, code: grpc.StatusCode, message: str) -> None:
        raise Aborted(code, message)


async def call(method: str, api: Reviewing, *, metadata: Any = (BEARER,), streams: bool = False) -> list[str]:
    """What the handler behind the guard answers."""

    async def unary(request: Any, context: Any) -> str:
        return "answer"

    async def stream(request: Any, context: Any) -> Any:
        yield "first"
        yield "second"

    made = grpc.unary_stream_rpc_method_handler(stream) if streams else grpc.unary_unary_rpc_method_handler(unary)

    async def continuation(details: Any) -> Any:
        return made

    handler = await Guard(api).intercept_service(continuation, Details(method, metadata))
    if streams:
        return [each async for each in handler.unary_stream(Request(), Context())]
    return [await handler.unary_unary(Request(), Context())]


@pytest.mark.parametrize(
    ("method", "verb"),
    [
        ("Get", "get"),
        ("Sessions", "get"),
        ("Usage", "get"),
        ("Apply", "update"),
        ("Scale", "update"),
        ("Delete", "delete"),
        ("New", "update"),
    ],
)
async def test_each_call_needs_the_right_to_do_to_the_object_what_it_asks(method: str, verb: str) -> None:
    """A method that nobody thought of needs the most that reading and writing know."""
    assert await call(method, Reviewing((verb, "ns"))) == ["answer"]
    others = [(each, "ns") for each in ("get", "watch", "update", "delete") if each != verb]
    with pytest.raises(Aborted) as refused:
        await call(method, Reviewing(*others))
    assert refused.value.args[0] == CODE.PERMISSION_DENIED


async def test_a_stream_is_guarded_like_a_call_and_gives_nothing_first() -> None:
    assert await call("Watch", Reviewing(("watch", "ns")), streams=True) == ["first", "second"]
    with pytest.raises(Aborted):
        await call("Watch", Reviewing(("get", "ns")), streams=True)


@pytest.mark.parametrize("metadata", [None, (), (("other", "Bearer good"),), (BEARER, BEARER)])
async def test_a_call_without_one_token_is_refused(metadata: Any) -> None:
    with pytest.raises(Aborted) as refused:
        await call("Get", Reviewing(("get", "ns")), metadata=metadata)
    assert refused.value.args[0] == CODE.UNAUTHENTICATED


async def test_a_method_that_is_not_served_is_left_to_the_server() -> None:
    async def continuation(details: Any) -> None:
        return None

    assert await Guard(Reviewing()).intercept_service(continuation, Details("Nothing", ())) is None
