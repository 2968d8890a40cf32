"""Which Secrets there are to be, as the chart writes it into a file."""

from pathlib import Path

import msgspec
from dormouse_core.limits import CERTIFICATE_DAYS, PASSWORD_DAYS


class Certificates(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """`secret`: with ca.crt, tls.crt and tls.key."""

    secret: str
    authority: str = ""
    """The Secret with the authority's certificate and key, which nobody mounts; empty: `secret` is somebody else's to make."""
    before: str = ""
    """The Secret that the templates of an earlier release made, which is taken over."""
    hosts: tuple[str, ...] = ()
    days: float = CERTIFICATE_DAYS
    members: str = ""
    """Labels of etcd's pods, where there are several."""


class Passwords(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """`secret`: with the keys operator, gateway and workers."""

    secret: str
    ours: bool = True
    """False: somebody else makes it; `workers` may be absent then."""
    before: str = ""
    days: float = PASSWORD_DAYS


class Wanted(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    namespace: str
    certificates: Certificates
    passwords: Passwords
    labels: dict[str, str] = {}
    """Of what is made. Never app.kubernetes.io/instance: Argo CD prunes what has it and is not rendered."""


def read(path: str) -> Wanted:
    """OSError: it cannot be read. ValueError: it says what it may not."""
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=Wanted)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path}: {error}") from error
