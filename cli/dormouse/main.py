"""The `dormouse` command. Errors are one readable line and exit code 1; a wrong command line is argparse's 2."""

import argparse
import asyncio
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from dormouse_core import limits
from dormouse_core.errors import DormouseError
from dormouse_core.plain import plain
from dormouse_core.spec.durations import Duration


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.command == "up":
        return _guard(lambda: _up(options))
    if options.command == "init":
        from dormouse.initial import init

        return _guard(lambda: init(options))
    if options.command in ("backup", "restore"):
        from dormouse import backups

        return _guard(lambda: getattr(backups, options.command)(options))
    from dormouse import commands  # here, so that `dormouse --help` and `up` load no client

    return _guard(lambda: getattr(commands, options.command)(options))


def _guard(run: "object") -> int:
    try:
        run()  # type: ignore[operator]  # a callable without arguments
    except DormouseError as error:
        print(plain(f"dormouse: {error.message}", keep="\n"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    return 0


def _up(options: argparse.Namespace) -> None:
    from dormouse_kit import log

    from dormouse.up import up

    log.setup("up")
    endpoints = [e for given in options.etcd_endpoints for e in given.split(",") if e]
    asyncio.run(
        up(
            Path(options.directory),
            port=options.port,
            etcd=options.etcd,
            etcd_endpoints=endpoints,
            etcd_quota=options.etcd_quota,
            installation=options.installation,
            max_message=options.max_message,
            removal_wait=options.removal_wait or "",
        )
    )


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="dormouse", description="Inference functions that sleep to zero and wake up remembering.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    up = commands.add_parser("up", help="run the whole system on this machine, in the foreground")
    up.add_argument(
        "directory",
        metavar="DIR",
        help="a folder: its manifests (*.yaml, *.yml, *.json) are applied, file:// is a path in it, data goes to DIR/.dormouse",
    )
    up.add_argument(
        "--port", type=_port, default=8001, help="the port on 127.0.0.1 where callers connect; by default 8001; 0: any free one"
    )
    up.add_argument(
        "--etcd", default="", metavar="PATH", help="the etcd to run; by default the one on PATH, if its version is 3.4.22+ or 3.5.6+"
    )
    up.add_argument(
        "--etcd-quota",
        type=_size(limits.ETCD_QUOTA_BYTES_MAX),
        default=limits.ETCD_QUOTA_BYTES,
        metavar="SIZE",
        help=f"the limit of etcd's file (its --quota-backend-bytes); by default {_named(limits.ETCD_QUOTA_BYTES)}, "
        f"at most {_named(limits.ETCD_QUOTA_BYTES_MAX)}",
    )
    up.add_argument(
        "--etcd-endpoints", action="append", default=[], metavar="HOST:PORT,...", help="use an etcd that runs already; none is started"
    )

    up.add_argument(
        "--max-message",
        type=_size(limits.MESSAGE_BYTES_MAX),
        default=limits.MESSAGE_BYTES,
        metavar="SIZE",
        help=f"the largest request or reply; by default {_named(limits.MESSAGE_BYTES)}, at most {_named(limits.MESSAGE_BYTES_MAX)}",
    )
    up.add_argument(
        "--removal-wait",
        type=_duration,
        metavar="DURATION",
        help=f"the time from a session's end to its removal; by default {limits.REMOVAL_WAIT_SECONDS / 60:g}m or more",
    )
    up.add_argument("--installation", default="local", metavar="NAME", help="the name of this system in the store; by default local")

    init = commands.add_parser("init", help="write a manifest for an ONNX model, with the states that it seems to have")
    init.add_argument("model", metavar="MODEL.onnx", help="the model that the manifest is for")
    init.add_argument("--name", default="", help="the function's name; by default the file's")
    init.add_argument(
        "-o", "--output", default="", metavar="FILE", help="where to write the manifest; by default NAME.yaml in this folder; - prints it"
    )
    init.add_argument("--force", action="store_true", help="write over FILE if it exists")

    apply = _command(commands, "apply", "create or change functions")
    apply.add_argument(
        "-f",
        "--filename",
        action="append",
        required=True,
        metavar="FILE",
        help="manifests, YAML or JSON: a file of one or several, a folder, or - for standard input; may be repeated",
    )

    apply.add_argument("--refresh", action="store_true", help="read the models' content again, each as a new revision")

    get = _command(commands, "get", "show functions")
    get.add_argument("function", nargs="?", default="", metavar="[NAMESPACE/]NAME", help="by default all functions")
    get.add_argument("-n", "--namespace", default="", help="show only functions of this namespace")
    get.add_argument("-o", "--output", default="", choices=["", "wide", "yaml", "json"], help="the format; by default a table")
    get.add_argument("-w", "--watch", action="store_true", help="show them again at every change")
    get.add_argument("--owners", action="store_true", help="show the owner of each shard too (with -o yaml or json)")

    scale = _command(commands, "scale", "fix the number of workers, or let the load decide")
    scale.add_argument("function", metavar="[NAMESPACE/]NAME")
    scale.add_argument(
        "replicas", type=_replicas, metavar="N|auto", help="the number of workers; 0: stopped, calls are refused; auto: the load decides"
    )

    delete = _command(commands, "delete", "remove a function and its sessions")
    delete.add_argument("function", metavar="[NAMESPACE/]NAME")
    delete.add_argument("--no-wait", action="store_true", help="do not wait until the function is gone")

    call = _command(commands, "call", "call a function through the gateway")
    call.add_argument("function", metavar="[NAMESPACE/]NAME")
    call.add_argument(
        "-i", "--input", action="append", default=[], metavar="NAME=VALUE", help="an input, as JSON or @file.npy; may be repeated"
    )
    call.add_argument("--session", help="make the call a step of the session of this name")
    call.add_argument("--sequence-id", type=_sequence_id, help="make the call a step of this Triton sequence: a number, or text")
    call.add_argument("--start", action="store_true", help="this is the sequence's first step")
    call.add_argument("--end", action="store_true", help="this is the sequence's last step")
    call.add_argument("--tenant", default="", help="the tenant that the session belongs to")
    call.add_argument("--key", default="", help="an idempotency key: the same call sent again runs once")
    call.add_argument("--timeout", type=float, help="seconds to wait for the reply")
    call.add_argument("--address", help="the gateway, host:port; by default that of --dir")

    sessions = _command(commands, "sessions", "list a function's sessions, show one, or delete some")
    sessions.add_argument("function", metavar="[NAMESPACE/]NAME")
    sessions.add_argument("session", nargs="?", default="", metavar="TENANT/i:N|TENANT/s:NAME", help="a session, as the list shows it")
    sessions.add_argument("--delete", action="store_true", help="delete this session, or all of --tenant; no worker is started for it")
    sessions.add_argument("--cancel-alarm", metavar="NAME", help="cancel this alarm of the session; no worker is started for it")
    sessions.add_argument("--tenant", metavar="T", help='with --delete: all sessions of this tenant; "": those without a tenant')
    sessions.add_argument("-o", "--output", default="", choices=["", "yaml", "json"], help="the format; by default a table")
    sessions.add_argument("--limit", type=_limit, default=0, help="list at most this many; by default all")

    usage = _command(commands, "usage", "show what was used: steps, calls, time, bytes and state, by function, tenant or session")
    usage.add_argument("function", nargs="?", default="", metavar="[NAMESPACE/]NAME", help="by default all functions, deleted ones too")
    usage.add_argument("--by", default="function", choices=["function", "tenant", "session"], help="by default function")
    usage.add_argument("--since", default="", metavar="YYYY-MM-DD", help="count from the beginning of this day (UTC) on; by default all")
    form = usage.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="print comma-separated values")
    form.add_argument("-o", "--output", default="", choices=["", "yaml", "json"], help="the format; by default a table")

    backup = _command(commands, "backup", "write what is stored into a file, as a snapshot of etcd")
    backup.add_argument(
        "file", metavar="FILE|FOLDER", help="the file; in a folder: one named by the time. Also s3://BUCKET/FOLDER/ and gs://"
    )
    backup.add_argument(
        "--keep",
        type=_limit,
        default=0,
        metavar="N",
        help="in a folder, remove all but the newest N, and all but N without sessions; by default none",
    )
    _stored(backup)

    restore = _command(commands, "restore", "write what a backup has into the store, while no operator runs")
    restore.add_argument(
        "file", metavar="FILE|FOLDER", help="the file, as backup or etcdctl wrote it; of a folder, s3:// and gs:// too, the newest"
    )
    restore.add_argument("--replace", action="store_true", help="remove the functions and sessions that are there")
    _stored(restore)
    return top


def _stored(command: argparse.ArgumentParser) -> None:
    """How a store elsewhere is reached."""
    from dormouse_kit.etcd.options import add_store_options

    add_store_options(command)
    command.add_argument("--installation", default="local", metavar="NAME", help="the name of the system in the store; by default local")
    command.add_argument("--etcd", default="", metavar="PATH", help="without --store, where nothing runs: the etcd to run; as in up")


def _command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text)
    command.add_argument("--dir", help="the folder given to `dormouse up`; by default $DORMOUSE_DIR, or this folder or one above it")
    return command


def _size(most: int) -> Callable[[str], int]:
    """A parser of bytes, or of KiB, MiB or GiB."""

    def parse(text: str) -> int:
        number, unit = next(((text.removesuffix(unit), factor) for unit, factor in _UNITS.items() if text.endswith(unit)), (text, 1))
        size = int(number) * unit if number.isascii() and number.isdigit() else 0
        if 1 <= size <= most:
            return size
        raise argparse.ArgumentTypeError(f"{text!r} found, a size such as 16MiB, at most {most >> 20}MiB, is allowed")

    return parse


_UNITS = {"KiB": limits.KIB, "MiB": limits.MIB, "GiB": limits.GIB}


def _named(size: int) -> str:
    """As `_size` reads it."""
    unit = max((unit for unit, factor in _UNITS.items() if size % factor == 0), key=_UNITS.__getitem__)
    return f"{size // _UNITS[unit]}{unit}"


def _duration(text: str) -> str:
    try:
        Duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _port(text: str) -> int:
    if text.isascii() and text.isdigit() and int(text) < 65536:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} found, 0 to 65535 is allowed")


def _replicas(text: str) -> int | None:
    if text == "auto":
        return None
    if text.isascii() and text.isdigit():
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} found, a number or auto is allowed")


def _limit(text: str) -> int:
    if text.isascii() and text.isdigit() and int(text):
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} found, a number from 1 on is allowed")


def _sequence_id(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text


if __name__ == "__main__":
    sys.exit(main())
