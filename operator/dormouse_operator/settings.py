"""What the operator is told at its start."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from dormouse_core.limits import ETCD_QUOTA_BYTES
from dormouse_core.spec.durations import Duration
from dormouse_kit.etcd.options import add_store_options


@dataclass(frozen=True, slots=True)
class OperatorSettings:
    store: tuple[str, ...] = ("127.0.0.1:2379",)
    store_ca: str = ""
    store_cert: str = ""
    store_key: str = ""
    store_user: str = ""
    store_password_file: str = ""
    store_quota: int = ETCD_QUOTA_BYTES
    """etcd's `--quota-backend-bytes`, for members that do not say it themselves (3.4 and 3.5)."""
    installation: str = "default"
    name: str = "operator"
    """What this process calls itself to workers and in the leader's key."""
    control: str = "unix:/run/dormouse/control.sock"
    """Where people's calls are answered: unix:PATH."""
    provider: str = "unix:/run/dormouse/provider.sock"
    """Where `dormouse up` starts and stops workers: unix:PATH."""
    listen: str = "127.0.0.1:9002"
    """Where gateways' agents report, IP:port or unix:PATH; it stands in the leader's key, so they must be able to reach it."""
    gateway: str = ""
    """Where workers connect to call functions for their steps, host:port or unix:PATH; '': nowhere."""
    metrics: int = 9090
    """The port for Prometheus; 0: any free one."""
    model_root: str = ""
    """The folder under which file:// lies for the workers of this machine."""
    removal_wait: float | None = None
    """Seconds from a session's end to its removal; None: see `lifetimes.removal_wait`."""


def parse(arguments: Sequence[str] | None) -> OperatorSettings:
    """Settings from the command line; exits with a readable message when one is wrong."""
    default = OperatorSettings()
    parser = argparse.ArgumentParser(prog="dormouse_operator")
    parser.add_argument(
        "--local",
        action="store_true",
        required=True,
        help="serve one machine, where `dormouse up` starts the workers; --kubernetes has options of its own",
    )
    add_store_options(parser)
    parser.add_argument(
        "--store-quota", type=int, default=default.store_quota, metavar="BYTES", help="what etcd was given as --quota-backend-bytes"
    )
    parser.add_argument("--installation", default=default.installation, help="the name of this installation in the store")
    parser.add_argument("--name", default=default.name, help="what this process calls itself to workers and in the store")
    parser.add_argument("--control", default=default.control, metavar="unix:PATH", help="where the command `dormouse` is answered")
    parser.add_argument("--provider", default=default.provider, metavar="unix:PATH", help="where `dormouse up` starts and stops workers")
    parser.add_argument("--listen", default=default.listen, metavar="IP:PORT|unix:PATH", help="where gateways' agents report")
    parser.add_argument(
        "--gateway", default=default.gateway, metavar="HOST:PORT|unix:PATH", help="where workers call functions for their steps"
    )
    parser.add_argument("--metrics", type=int, default=default.metrics, metavar="PORT", help="the port for Prometheus; 0: any free one")
    parser.add_argument("--model-root", default=default.model_root, metavar="DIR", help="the folder in which file:// is a path")
    parser.add_argument(
        "--removal-wait", type=_wait, metavar="DURATION", help="the time from a session's end to its removal; by default 10m or more"
    )
    options = vars(parser.parse_args(arguments))
    del options["local"]
    options["store"] = tuple(options["store"] or default.store)
    if options["store_quota"] <= 0:
        parser.error(f"--store-quota: {options['store_quota']} found, a number of bytes above 0 is allowed")
    for option in ("control", "provider"):
        if not options[option].startswith("unix:"):
            parser.error(f"--{option}: {options[option]!r} found, unix:PATH is allowed")
    listen = options["listen"]
    if not listen.startswith("unix:") and not ((port := listen.rpartition(":")[2]).isdigit() and 0 < int(port) < 65536):
        parser.error(f"--listen: {listen!r} found, unix:PATH or IP:port with a port from 1 to 65535 is allowed")
    return OperatorSettings(**options)


def _wait(text: str) -> float:
    try:
        return Duration(text).seconds
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
