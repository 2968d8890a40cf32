"""Which Secrets and members of the chart's etcd there are to be, as the chart writes it into a file; and the command line of who keeps
them."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
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


class Members(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """`secret`: what remembers that there is a cluster of several."""

    secret: str
    selector: str
    """Labels of etcd's pods."""


class MemberPods(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """etcd's StatefulSet, and the labels of its pods."""

    name: str
    selector: str


class Wanted(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    namespace: str
    certificates: Certificates
    passwords: Passwords
    members: Members | None = None
    """None: there is to be one."""
    pods: MemberPods | None = None
    """None: nobody has them start again."""
    labels: dict[str, str] = {}
    """Of what is made. Never app.kubernetes.io/instance: Argo CD prunes what has it and is not rendered."""


def read(path: str) -> Wanted:
    """OSError: it cannot be read. ValueError: it says what it may not."""
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=Wanted)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path}: {error}") from error


@dataclass(frozen=True, slots=True)
class SecretOptions:
    wanted: Wanted
    folder: Path


def add(parser: argparse.ArgumentParser) -> None:
    """`secrets`, `secrets_folder`: text, empty where none is given."""
    parser.add_argument("--secrets", default="", metavar="FILE", help="JSON with the Secrets of the chart's etcd, which this process keeps")
    parser.add_argument("--secrets-folder", default="", metavar="DIR", help="where their texts are written, as files")


def chosen(parser: argparse.ArgumentParser, secrets: str, folder: str) -> SecretOptions | None:
    """None: neither is given. Exits with a readable message where one is wrong."""
    if bool(secrets) != bool(folder):
        parser.error("--secrets and --secrets-folder go together")
    try:
        return SecretOptions(read(secrets), Path(folder)) if secrets else None
    except (OSError, ValueError) as error:
        parser.error(f"--secrets: {error}")


def parse(arguments: Sequence[str]) -> SecretOptions:
    parser = argparse.ArgumentParser(prog="dormouse_operator.kubernetes.secrets")
    add(parser)
    given = parser.parse_args(arguments)
    found = chosen(parser, given.secrets, given.secrets_folder)
    if found is None:
        parser.error("--secrets and --secrets-folder are required")
    return found
