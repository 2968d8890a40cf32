"""Settings name what is wrong, and the bootstrap leaves no limit by accident."""

import json

import pytest
from dormouse_gateway.envoy.bootstrap import bootstrap, lua_source
from dormouse_gateway.settings import GatewaySettings, parse
from dormouse_kit.envoyadmin import unchunked


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--listen", "localhost:8001"], "listen: 'localhost:8001' found, IP:port is allowed"),
        (["--listen-relay", "127.0.0.1:0"], "relay: port 0 found, 1 to 65535 are allowed"),
        (["--xds", "/tmp/x.sock"], "xds: '/tmp/x.sock' found, unix:PATH is allowed"),
        (["--max-message-bytes", "99999999"], "max_message_bytes: 99999999 found, 1 to 67108864 are allowed"),
        (["--own-name", 'a"]b'], "own_names: 'a\"]b' found"),
        (["--admin", "/" + "x" * 120], "121 bytes found, a Unix socket's path has at most 107"),
    ],
)
def test_wrong_settings(options: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(options, "gateway")
    assert text in capsys.readouterr().err


def test_the_command_line_becomes_settings() -> None:
    settings = parse(["--store", "a:1", "--store", "b:2", "--own-name", "Front.Example"], "gateway")
    assert settings.store == ("a:1", "b:2")
    assert settings.own_names == {"front.example"}
    assert parse([], "gateway") == GatewaySettings()


def test_no_limit_by_accident() -> None:
    made = bootstrap(GatewaySettings(own_names=frozenset({"front.example"})))
    json.dumps(made)
    manager = made["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    for key in ("stream_idle_timeout", "request_timeout"):
        assert manager[key] == "0s"
    assert manager["common_http_protocol_options"]["idle_timeout"] == "0s"
    for cluster in made["static_resources"]["clusters"]:
        for threshold in cluster["circuit_breakers"]["thresholds"]:
            assert min(value for key, value in threshold.items() if key.startswith("max_")) >= 100_000
    runtime = made["layered_runtime"]["layers"][0]["static_layer"]
    assert runtime["overload.premature_reset_total_stream_count"] >= 1_000_000
    assert made["dynamic_resources"]["cds_config"]["initial_fetch_timeout"] == "0s"


def test_lua_gets_its_settings() -> None:
    source = lua_source(GatewaySettings(relay="10.0.0.1:8002", default_namespace="team", own_names=frozenset({"front.example"})))
    assert 'local DEFAULT_NAMESPACE = "team"\nlocal RELAY = "10.0.0.1:8002"\nlocal OWN_NAMES = {["front.example"] = true}\n' in source


def test_chunked_coding() -> None:
    assert unchunked(b"5\r\nhello\r\n1\r\n \r\nA\r\n0123456789\r\n0\r\n\r\n") == b"hello 0123456789"
