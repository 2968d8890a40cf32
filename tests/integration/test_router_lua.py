"""router.lua and Python agree: on names, shards, what a message says, and whom a map names."""

import json
import random
import zlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from dormouse_core import limits
from dormouse_core.errors import DormouseError
from dormouse_core.sessions.names import session_key, shard_of
from dormouse_gateway import naming
from dormouse_gateway.envoy.bootstrap import opening_source
from dormouse_gateway.envoy.resources import shard_map
from dormouse_gateway.settings import GatewaySettings
from dormouse_proto import inference_pb2
from dormouse_testing.lua import Lua, running
from google.protobuf.message import DecodeError

VECTORS = Path(__file__).parent.parent / "vectors" / "sessions.json"
INTS = [1, -1, 7, 10**6, 2**31, 2**32, 2**53 - 1, 2**53, 2**53 + 1, 2**63 - 1, -(2**63), -(2**53) - 1, 999_999_999_999_999_999]
STRINGS = ["7", "a/b", "../a", "a%2Fb", "a b", "é", "e\u0301", "\0", "\n", "~-._", "日本", "x" * 128, "😀" * 128]


@pytest.fixture(scope="module")
def lua() -> Iterator[Lua]:
    with running(GatewaySettings(own_names=frozenset({"gateway.dormouse", "front.example.com"}), concurrency=1)) as made:
        yield made


def test_crc32(lua: Lua) -> None:
    rng = random.Random(1)
    texts = [b"", b"123456789", *(rng.randbytes(rng.randrange(1, 300)) for _ in range(200))]
    assert lua.texts([("crc32", text) for text in texts]) == [str(zlib.crc32(text)) for text in texts]


def test_a_timestamp_is_corrected_and_above_the_one_before(lua: Lua) -> None:
    now = 1_790_000_000_000_000
    asked = [(now, 0), (now + 5, -2_000_000), (now + 6, ""), (now + 7, 90_000), (now + 8, 3_600_000_000), (now - 10**9, 3_600_000_000)]
    stamps = [now, now + 1, now + 6, now + 90_007, now + 3_600_000_008, now + 3_600_000_009]
    maker = lua.texts([("maker",)])
    assert lua.texts([("stamp", *each) for each in asked]) == [str(stamp) for stamp in stamps]
    assert lua.texts([("maker",)]) == maker


def test_a_clock_that_was_ahead_leaves_no_timestamp_ahead(lua: Lua) -> None:
    """Else all keys would be ahead for as long as it was, and refused by every worker. They go on under another maker."""
    now, hour, second = 1_890_000_000_000_000, 3_600_000_000, 1_000_000
    makers = lua.texts([("maker",)])
    # It begins an hour ahead, and the agent learns so; then it is set right, before the agent knows.
    asked = [(now + hour, 0), (now + hour + 1, -hour), (now + hour + 2, -hour), (now + 3, -hour), (now + 4, 0)]
    assert lua.texts([("stamp", *each) for each in asked]) == [str(now + n) for n in (hour, 1, 2, 3, 4)]
    makers += lua.texts([("maker",)])
    # It jumps ahead and back, and no agent notices.
    asked = [(now + hour, 0), (now + 5, 0), (now + 5 + 2 * second, 0), (now + 6 + 2 * second, 0)]
    stamps = [now + hour, now + hour + 1, now + hour + 2, now + 6 + 2 * second]
    assert lua.texts([("stamp", *each) for each in asked]) == [str(stamp) for stamp in stamps]
    makers += lua.texts([("maker",)])
    assert len(set(makers)) == 3


@pytest.mark.parametrize(("day", "back", "makers"), [(1, -0.001, 1), (2, 3.0, 2)])
def test_a_clock_that_goes_back_was_wrong_from_the_bound_of_clocks_on(lua: Lua, day: int, back: float, makers: int) -> None:
    """By less, its keys go on above those before: gateways that differ by so much are right."""
    now = 1_990_000_000_000_000 + day * 86_400_000_000
    behind = now - round((limits.CLOCK_SKEW_SECONDS + back) * 1e6)
    lua.texts([("stamp", now, 0)])
    before = lua.texts([("maker",)])
    lua.texts([("stamp", behind + call * 1_100_000, 0) for call in range(3)])
    assert len({*before, *lua.texts([("maker",)])}) == makers


def test_percent_encoding(lua: Lua) -> None:
    texts = [bytes([each]) for each in range(256)] + [text.encode() for text in STRINGS]
    assert lua.texts([("encode", text) for text in texts]) == [quote(text, safe="") for text in texts]


def test_int64_never_passes_through_a_double(lua: Lua) -> None:
    rng = random.Random(2)
    values = [*INTS, *(rng.randrange(-(2**63), 2**63) for _ in range(500))]
    halves = [((value % 2**64) >> 32, value % 2**32) for value in values]
    assert lua.texts([("int64", *half) for half in halves]) == [str(value) for value in values]


def key_of(lua: Lua, ids: list[int | str], tenant: str) -> list[str]:
    """The session keys that router.lua computes from messages with these ids."""
    messages = []
    for each in ids:
        request = inference_pb2.ModelInferRequest(model_name="m")
        if isinstance(each, int):
            request.parameters["sequence_id"].int64_param = each
        else:
            request.parameters["sequence_id"].string_param = each
        messages.append(request.SerializeToString())
    encoded = lua.texts([("encode", tenant)])[0]
    return [f"{encoded}/{answer.partition(chr(0))[2]}" for answer in lua.texts([("request", message) for message in messages])]


def test_session_keys_and_owners(lua: Lua) -> None:
    for tenant in ("", "acme", "a/b c"):
        ids: list[int | str] = [*INTS, *STRINGS]
        keys = key_of(lua, ids, tenant)
        assert keys == [session_key(tenant, each) for each in ids]
        hosts = [f"10.0.{n // 256}.{n % 256}:9000" for n in range(200)]
        for shards in (1, 2, 64, 1000, 4096):
            rng = random.Random(shards)
            places = [rng.randrange(-1, 200) for _ in range(shards)]
            owners = lua.texts([("owner", shard_map(places), ",".join(hosts), key) for key in keys])
            expected = [places[shard_of(key, shards)] for key in keys]
            assert owners == [hosts[place] if place >= 0 else "" for place in expected]


def test_shared_vectors(lua: Lua) -> None:
    """The file that pins Python's side pins Lua's too."""
    vectors = json.loads(VECTORS.read_text())["vectors"]
    assert vectors
    for vector in vectors:
        each: int | str = int(vector["int"]) if "int" in vector else vector["string"]
        assert key_of(lua, [each], vector["tenant"]) == [vector["key"]]
        for shards, shard in vector["shards"].items():
            hosts = [f"h{number}" for number in range(int(shards))]  # one owner a shard, so that the owner tells the shard
            owner = lua.texts([("owner", shard_map(range(int(shards))), ",".join(hosts), vector["key"])])
            assert owner == [f"h{shard}"]


@pytest.mark.parametrize(
    ("authority", "function"),
    [
        ("vad.speech", "speech/vad"),
        ("VAD.speech:8001", "speech/vad"),
        ("vad.speech.svc", "speech/vad"),
        ("vad.speech.svc.cluster.local.:80", "speech/vad"),
        ("127.0.0.1:8001", ""),
        ("localhost:8001", ""),
        ("vad.speech.svc.other", ""),
        ("gateway.dormouse:8001", ""),
        ("Gateway.Dormouse", ""),
        ("front.example.com", ""),
        ("[::1]:8001", ""),
        ("", ""),
    ],
)
def test_authorities(lua: Lua, authority: str, function: str) -> None:
    assert lua.texts([("authority", authority)]) == [function]


def test_model_names(lua: Lua) -> None:
    names = ["vad", "speech/vad", "a/b/c", "", "a b", "-a", "a/", "A/b", "é"]
    assert lua.texts([("model", name) for name in names]) == ["default/vad", "speech/vad", "", "", "", "", "", "", ""]
    names = ["Densenet_ONNX", "speech/Silero_VAD.v2", "a--b", "A--b", "_a"]
    found = ["default/densenet-onnx", "speech/silero-vad-v2", "default/a--b", "default/a-b", ""]
    assert lua.texts([("model", name) for name in names]) == found


def random_request(rng: random.Random) -> bytes:
    """A request with its fields in any order, some twice, some unknown."""
    parts = []
    for _ in range(rng.randrange(1, 6)):
        part = inference_pb2.ModelInferRequest()
        kind = rng.randrange(7)
        if kind == 0:
            part.model_name = rng.choice(["vad", "speech/vad", "x" * 5000, "é"])
        elif kind == 1:
            part.parameters["sequence_id"].int64_param = rng.choice([*INTS, 0])
        elif kind == 2:
            part.parameters["sequence_id"].string_param = rng.choice([*STRINGS, ""])
        elif kind == 3:
            part.parameters["sequence_start"].bool_param = True
        elif kind == 4:
            part.raw_input_contents.append(rng.randbytes(rng.randrange(20_000)))
        elif kind == 5:
            part.inputs.add(name="x", datatype="FP32", shape=[1, 2]).contents.fp32_contents.extend([1.0, 2.0])
        else:
            parts.append(b"\xfa\x3f\x03abc\xf8\x3f\x7f\xfd\x3fabcd\xf9\x3fabcdefgh")  # unknown fields of each wire type
        parts.append(part.SerializeToString())
    return b"".join(parts)


def test_messages_mean_to_lua_what_they_mean_to_protobuf(lua: Lua) -> None:
    rng = random.Random(3)
    messages = [random_request(rng) for _ in range(400)]
    for message, answer in zip(messages, lua.texts([("request", message) for message in messages]), strict=True):
        request = inference_pb2.ModelInferRequest.FromString(message)
        sequence = naming.sequence(request)
        model, _, found = answer.partition("\0")
        assert model == request.model_name
        # Longer strings than a session may have: Lua names them all the same, the worker refuses.
        expected = "" if sequence is None else session_key("", sequence).removeprefix("/")
        assert found == expected


def test_what_cannot_be_read_is_not_guessed(lua: Lua) -> None:
    """Truncated or damaged bytes: Lua raises, or reads what protobuf reads. Never another session."""
    rng = random.Random(4)
    damaged = []
    for _ in range(600):
        message = bytearray(random_request(rng))
        if message:
            message[rng.randrange(len(message))] = rng.randrange(256)
        damaged.append(bytes(message if rng.randrange(3) else message[: rng.randrange(1, len(message) + 1)]))
    different = 0
    for message, answer in zip(damaged, lua.ask([("request", message) for message in damaged]), strict=True):
        if answer is None:
            continue
        model, _, found = answer.partition(b"\0")
        try:
            request = inference_pb2.ModelInferRequest.FromString(message)
            sequence = naming.sequence(request)
            expected = "" if sequence is None else session_key("", sequence).removeprefix("/")
        except (DormouseError, DecodeError):
            continue  # the worker refuses it, wherever it goes
        different += 1
        assert (model.decode(), found.decode()) == (request.model_name, expected)
    assert different > 50


def test_who_opens_few_streams_is_let_in_while_others_open_without_end() -> None:
    now, most, least = 1_790_000_000_000, limits.HELD_STREAMS, limits.CONNECTION_OPENED_STREAMS
    with running(GatewaySettings(concurrency=1), opening_source) as lua:

        def opens(connection: str, times: int, at: float = 0) -> int:
            """How many of so many that a connection opens at this second are let through."""
            return lua.texts([("admits", connection, now + round(1000 * at))] * times).count("yes")

        assert opens("many", most) == most, "nobody else opens any"
        assert opens("many", 100) == 0
        assert opens("honest", 200) == 200, "within its part"
        others = [opens(f"other-{number}", most // 20) for number in range(20)]
        assert sum(others) < 2.5 * most
        assert opens("late", 1) == 1
        crowd = [opens(f"crowd-{number}", least) for number in range(most // least)]
        assert set(crowd) == {least}, "however many there are"
        assert opens("many", 1, at=1) == 0
        assert opens("late", 1, at=-5) == 1, "a clock that is set back"
        assert opens("many", 10, at=10 * limits.OPENING_SECONDS) == 10
