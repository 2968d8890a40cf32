"""``python -m dormouse_operator.kubernetes.members``: before etcd's start, has this member form a cluster or join one, and writes etcd's
configuration."""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dormouse_kit import log
from dormouse_kit.clock import SystemClock
from dormouse_kit.etcd import TlsFiles
from dormouse_kit.etcd.membership import Membership, asked
from dormouse_kit.etcd.users import ROOT

from dormouse_operator.kubernetes.members.joining import Joining, Place


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Exits with a readable message where one is wrong."""
    parser = argparse.ArgumentParser(prog="dormouse_operator.kubernetes.members")
    parser.add_argument("--name", required=True, help="this member's")
    parser.add_argument("--member", action="append", required=True, metavar="NAME=URL", help="each that there is to be, for peers")
    parser.add_argument("--data", required=True, type=Path, metavar="DIR", help="etcd's data-dir")
    parser.add_argument("--etcd", required=True, metavar="JSON", help="etcd's configuration, but for the cluster that it begins with")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="where it is written, with that")
    parser.add_argument("--formed", required=True, type=Path, metavar="FILE", help="is there where there was a cluster of several")
    parser.add_argument("--formed-secret", required=True, metavar="NAME", help="of which that file is, for people")
    parser.add_argument("--store", action="append", required=True, metavar="HOST:PORT", help="the members, for clients")
    parser.add_argument("--store-password-file", default="", metavar="FILE", help="root's password; without, etcd has no users")
    for word in ("ca", "cert", "key"):
        parser.add_argument(f"--peer-{word}", type=Path, metavar="FILE", help="PEM, as peers have it; without, no TLS")
    given = parser.parse_args(arguments)
    given.urls = dict(each.partition("=")[::2] for each in given.member)
    if given.name not in given.urls:
        parser.error(f"--name: {given.name!r} found, one of --member ({', '.join(given.urls)}) is allowed")
    if bad := [name for name, url in given.urls.items() if not url.startswith(("http://", "https://"))]:
        parser.error(f"--member: no URL found for {bad[0]!r}, NAME=https://HOST:PORT is allowed")
    given.etcd = _object(parser, given.etcd)
    return given


def _object(parser: argparse.ArgumentParser, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        parser.error(f"--etcd: {error}")
    if not isinstance(found, dict):
        parser.error(f"--etcd: {type(found).__name__} found, an object is allowed")
    return found


async def run(given: argparse.Namespace) -> int:
    tls = TlsFiles(given.peer_ca, given.peer_cert, given.peer_key) if given.peer_ca else None
    password = Path(given.store_password_file) if given.store_password_file else ""
    cluster = Membership(given.store, tls=TlsFiles(given.peer_ca) if tls else None, user=ROOT if password else "", password=password)
    place = Place(given.name, given.urls, given.data, given.formed, given.formed_secret, given.etcd, given.out)
    try:
        await Joining(place, cluster, lambda url: asked(url, tls), SystemClock()).run()
    finally:
        await cluster.close()
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    log.setup("etcd")
    return asyncio.run(run(parse(sys.argv[1:] if arguments is None else arguments)))


if __name__ == "__main__":
    sys.exit(main())
