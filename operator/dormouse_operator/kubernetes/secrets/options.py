"""The command line of who keeps the store's Secrets."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dormouse_operator.kubernetes.secrets.wanted import Wanted, read


@dataclass(frozen=True, slots=True)
class Options:
    wanted: Wanted
    folder: Path


def add(parser: argparse.ArgumentParser) -> None:
    """`secrets`, `secrets_folder`: text, empty where none is given."""
    parser.add_argument("--secrets", default="", metavar="FILE", help="JSON with the Secrets of the chart's etcd, which this process keeps")
    parser.add_argument("--secrets-folder", default="", metavar="DIR", help="where their texts are written, as files")


def chosen(parser: argparse.ArgumentParser, secrets: str, folder: str) -> Options | None:
    """None: neither is given. Exits with a readable message where one is wrong."""
    if bool(secrets) != bool(folder):
        parser.error("--secrets and --secrets-folder go together")
    try:
        return Options(read(secrets), Path(folder)) if secrets else None
    except (OSError, ValueError) as error:
        parser.error(f"--secrets: {error}")


def parse(arguments: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(prog="dormouse_operator.kubernetes.secrets")
    add(parser)
    given = parser.parse_args(arguments)
    found = chosen(parser, given.secrets, given.secrets_folder)
    if found is None:
        parser.error("--secrets and --secrets-folder are required")
    return found
