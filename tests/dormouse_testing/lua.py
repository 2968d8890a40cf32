"""The functions of router.lua, or of another script, run where they run in earnest: inside Envoy. A listener of its own answers lines of
questions with lines of answers.
"""

import contextlib
import http.client
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dormouse_gateway.envoy.bootstrap import extension, lua_source, socket_address
from dormouse_gateway.envoy.process import command
from dormouse_gateway.settings import GatewaySettings

from dormouse_testing.ports import free_port

# A question is a name and arguments, hex, with spaces between; so is an answer. A raised error is the answer 'error'.
HARNESS = """
local function unhex(s) return (s:gsub("..", function(b) return string.char(tonumber(b, 16)) end)) end
local function hex(s) return (s:gsub(".", function(c) return string.format("%02x", c:byte()) end)) end
local asked = {
  crc32 = function(s) return string.format("%.0f", Router.crc32(s)) end,
  encode = function(s) return Router.encode(s) end,
  int64 = function(hi, lo) return Router.int64_text(tonumber(hi), tonumber(lo)) end,
  authority = function(s) return Router.from_authority(s) or "" end,
  model = function(s) return Router.from_model(s) or "" end,
  stamp = function(clock, correction) return Router.stamp(clock, correction) end,
  maker = function() return Router.maker() end,
  owner = function(map, hosts, key) return Router.owner(map, hosts, key) or "" end,
  admits = function(connection, now) return Opening.admits(connection, tonumber(now)) and "yes" or "no" end,
  request = function(s)
    local model, sequence = Router.read_request({getBytes = function(_, i, n) return s:sub(i + 1, i + n) end}, 0, #s)
    return model .. "\\0" .. (sequence or "")
  end,
}
function envoy_on_request(h)
  local body = h:body()
  local out = {}
  for line in body:getBytes(0, body:length()):gmatch("[^\\n]+") do
    local words = {}
    for word in line:gmatch("[^ ]+") do words[#words + 1] = word end
    for i = 2, #words do words[i] = words[i] == "-" and "" or unhex(words[i]) end
    local ok, answer = pcall(asked[words[1]], unpack(words, 2))
    out[#out + 1] = ok and "=" .. hex(answer) or "error"
  end
  h:respond({[":status"] = "200"}, table.concat(out, "\\n"))
end
"""


class Lua:
    """`ask` many at once: an exchange costs a millisecond, a question next to nothing."""

    def __init__(self, port: int) -> None:
        self._port = port

    def ask(self, questions: Sequence[tuple[Any, ...]]) -> list[bytes | None]:
        """The answers as bytes; None where the function raised."""

        def word(argument: Any) -> str:
            data = argument if isinstance(argument, bytes) else str(argument).encode()
            return data.hex() or "-"

        lines = "\n".join(" ".join([name, *map(word, arguments)]) for name, *arguments in questions)
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        with contextlib.closing(connection):
            connection.request("POST", "/", lines.encode())
            answer = connection.getresponse()
            assert answer.status == 200, answer.status
            found = answer.read().decode().split("\n")
        assert len(found) == len(questions), found[:3]
        return [None if each == "error" else bytes.fromhex(each.removeprefix("=")) for each in found]

    def texts(self, questions: Sequence[tuple[Any, ...]]) -> list[str]:
        return ["raised" if answer is None else answer.decode() for answer in self.ask(questions)]


@contextlib.contextmanager
def running(settings: GatewaySettings, source: Callable[[GatewaySettings], str] = lua_source) -> Iterator[Lua]:
    port = free_port()
    lua = extension(
        "envoy.filters.http.lua",
        "envoy.extensions.filters.http.lua.v3.Lua",
        default_source_code={"inline_string": source(settings) + HARNESS},
    )
    buffer = extension("envoy.filters.http.buffer", "envoy.extensions.filters.http.buffer.v3.Buffer", max_request_bytes=64 << 20)
    manager = extension(
        "envoy.filters.network.http_connection_manager",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="lua",
        route_config={
            "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 500}}]}]
        },
        http_filters=[buffer, lua, extension("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router")],
    )
    listener = {"name": "lua", "address": socket_address(f"127.0.0.1:{port}", "lua"), "filter_chains": [{"filters": [manager]}]}
    with tempfile.TemporaryDirectory(prefix="lua-") as folder:
        config = Path(folder) / "envoy.json"
        config.write_text(json.dumps({"static_resources": {"listeners": [listener]}}))
        with (Path(folder) / "log").open("wb") as log:
            envoy = subprocess.Popen(command(settings, config), stdout=log, stderr=log)
        try:
            lua_ = Lua(port)
            for _ in range(500):
                assert envoy.poll() is None, (Path(folder) / "log").read_text()
                with contextlib.suppress(OSError, http.client.HTTPException):
                    lua_.ask([("encode", "x")])
                    break
                with contextlib.suppress(subprocess.TimeoutExpired):
                    envoy.wait(0.02)
            yield lua_
        finally:
            envoy.kill()
            envoy.wait()
