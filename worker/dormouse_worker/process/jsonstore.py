"""Two calls to etcd through its JSON gateway, by hand: what a supervisor does in the name of a child that cannot.

gRPC would be most of the supervisor's memory. Here it is a socket, `json`, and `ssl` where etcd has TLS; and it runs in a process that is
forked for the purpose (`keeping`), so that neither a slow etcd nor a slow resolver stops the supervisor.
https://etcd.io/docs/v3.5/dev-guide/api_grpc_gateway/
"""

import base64
import json
import pathlib
import socket
from collections.abc import Mapping
from typing import Any

from dormouse_worker.process import probing
from dormouse_worker.process.bootstrap import UNIX

TIMEOUT = 0.7
"""Seconds for one member of etcd: two may be tried before a lease that is overdue has ended."""


class Refused(Exception):
    """etcd answered, and it is no."""


class JsonStore:
    def __init__(self, access: Mapping[str, Any]) -> None:
        """`access`: the worker file's `store`."""
        self._access = access
        self._endpoints = list(access["endpoints"])
        self._token = ""

    def keep_alive(self, lease: int) -> int:
        """The seconds that the lease now has; 0: it has ended. OSError: no answer."""
        answer = self._call("/v3/lease/keepalive", {"ID": str(lease)})
        try:
            return int(answer.get("result", answer).get("TTL", 0))
        except (AttributeError, TypeError, ValueError, OverflowError):
            raise OSError("the store's answer cannot be read") from None

    def change(self, key: str, value: bytes, lease: int) -> bool:
        """Puts a key that is there under the lease; False: it is not there any more."""
        name = _text(key.encode())
        compare = {"key": name, "target": "CREATE", "result": "GREATER", "create_revision": "0"}
        put = {"request_put": {"key": name, "value": _text(value), "lease": str(lease)}}
        return bool(self._call("/v3/kv/txn", {"compare": [compare], "success": [put]}).get("succeeded"))

    def _call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        failure: Exception = OSError("no endpoint")
        for _ in range(len(self._endpoints)):
            try:
                if self._access.get("user") and not self._token:
                    self._authenticate()
                try:
                    return self._post(path, body)
                except Refused:
                    if not self._access.get("user"):
                        raise
                    self._authenticate()  # the token has ended, or another user was changed
                    return self._post(path, body)
            except (OSError, ValueError) as error:
                failure = error
                self._endpoints.append(self._endpoints.pop(0))
        raise OSError(f"etcd does not answer: {failure}") from failure

    def _authenticate(self) -> None:
        file = self._access.get("passwordFile")
        password = pathlib.Path(file).read_text().strip() if file else self._access.get("password", "")
        self._token = ""
        self._token = str(self._post("/v3/auth/authenticate", {"name": self._access["user"], "password": password}).get("token", ""))

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        plain, host = _connected(self._endpoints[0])
        with plain, self._secured(plain, host) as sock:
            headers = f"authorization: {self._token}\r\n" if self._token else ""
            status, text = probing.exchange(sock, "POST", path, json.dumps(body).encode(), headers)
        if status != 200:
            raise Refused(f"{path}: {status} {text[:200]}")
        found = json.loads(text.split("\n", 1)[0])
        if not isinstance(found, dict):
            raise ValueError(f"{path}: the answer is not a JSON object")
        return found

    def _secured(self, sock: socket.socket, host: str) -> socket.socket:
        access = self._access
        if not access.get("ca") and not access.get("cert"):
            return sock
        import ssl  # 8 MB, where it is needed alone

        context = ssl.create_default_context(cafile=access.get("ca") or None)
        if access.get("cert"):
            context.load_cert_chain(access["cert"], access["key"])
        return context.wrap_socket(sock, server_hostname=host)


def _connected(endpoint: str) -> tuple[socket.socket, str]:
    """A connection, and the host that its certificate is to name. `endpoint`: [http[s]://]HOST:PORT or unix:PATH."""
    if not endpoint.startswith(UNIX):
        host, _, port = endpoint.rpartition("://")[2].rpartition(":")
        return socket.create_connection((host.strip("[]"), int(port)), TIMEOUT), host.strip("[]")
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(TIMEOUT)
    try:
        sock.connect(endpoint.removeprefix(UNIX))
    except OSError:
        sock.close()
        raise
    return sock, ""


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
