"""Where the API server is and how it knows us: from the pod's service account, or from a kubeconfig (`KUBECONFIG`) on a desk.

A service account's token lasts an hour or less and its file is replaced under a running process. So nobody keeps the token: it is read from
the file whenever the file has changed, for each request.
"""

import base64
import os
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from dormouse_core.errors import FailedPrecondition, text_of

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(slots=True)
class Token:
    """A bearer token, or its file. `path` wins."""

    text: str = ""
    path: Path | None = None
    _seen: tuple[int, int] = (0, 0)

    def read(self) -> str:
        if self.path is not None:
            try:
                status = self.path.stat()
                if (status.st_mtime_ns, status.st_ino) != self._seen:
                    self.text = self.path.read_text().strip()
                    self._seen = (status.st_mtime_ns, status.st_ino)
            except OSError:
                return self.text  # being replaced, or gone: what we had may still do
        return self.text


@dataclass(frozen=True, slots=True)
class Access:
    """`server`: https://host:port. `ca`, `cert`, `key`: PEM, empty where there is none."""

    server: str
    ca: bytes = b""
    cert: bytes = b""
    key: bytes = b""
    token: Token = field(default_factory=Token)
    insecure: bool = False

    def context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cadata=self.ca.decode() if self.ca else None)
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.cert:
            with tempfile.NamedTemporaryFile() as file:  # Python's ssl loads a key from a file only
                file.write(self.cert + b"\n" + self.key)
                file.flush()
                context.load_cert_chain(file.name)
        return context


def find(environment: Mapping[str, str] = os.environ) -> Access:
    """FailedPrecondition: neither a pod's service account nor a kubeconfig is there."""
    host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT", "443")
    if "KUBECONFIG" not in environment and host and (SERVICE_ACCOUNT / "token").exists():
        ca = SERVICE_ACCOUNT / "ca.crt"
        address = f"[{host}]" if ":" in host else host
        return Access(f"https://{address}:{port}", ca=ca.read_bytes(), token=Token(path=SERVICE_ACCOUNT / "token"))
    for name in environment.get("KUBECONFIG", str(Path.home() / ".kube" / "config")).split(os.pathsep):
        if name and Path(name).is_file():
            return kubeconfig(Path(name))
    raise FailedPrecondition("no access to a cluster: this is no pod with a service account, and KUBECONFIG names no file")


def kubeconfig(path: Path) -> Access:
    """The current context of `path`. FailedPrecondition: it has none, none that is complete, or one that logs in by a program."""
    try:
        return _current(path)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise FailedPrecondition(f"{path}: no kubeconfig whose current context is complete: {text_of(error)}") from error


def _current(path: Path) -> Access:
    data = yaml.safe_load(path.read_text()) or {}
    context = _named(path, data, "contexts", data.get("current-context", ""))["context"]
    cluster = _named(path, data, "clusters", context["cluster"])["cluster"]
    user = _named(path, data, "users", context["user"])["user"]
    if "exec" in user or "auth-provider" in user:
        raise FailedPrecondition(
            f"{path}: the user {context['user']} logs in through a program (exec, auth-provider); a token or a certificate is required"
        )
    token = Token(text=user.get("token", ""), path=path.parent / user["tokenFile"] if "tokenFile" in user else None)
    return Access(
        cluster["server"].rstrip("/"),
        ca=_pem(path, cluster, "certificate-authority"),
        cert=_pem(path, user, "client-certificate"),
        key=_pem(path, user, "client-key"),
        token=token,
        insecure=bool(cluster.get("insecure-skip-tls-verify")),
    )


def _named(path: Path, data: dict[str, Any], table: str, name: str) -> dict[str, Any]:
    for item in data.get(table) or ():
        if item.get("name") == name:
            return dict(item)
    raise FailedPrecondition(f"{path}: {table} has no {name!r}")


def _pem(path: Path, data: dict[str, Any], name: str) -> bytes:
    if f"{name}-data" in data:
        return base64.b64decode(data[f"{name}-data"])
    return (path.parent / data[name]).read_bytes() if name in data else b""
