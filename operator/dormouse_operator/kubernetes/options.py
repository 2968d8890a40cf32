"""What the operator of a cluster is told at its start: its command line, as the chart writes it, and a file about functions' objects."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import msgspec
from dormouse_core import addresses, passwords
from dormouse_core.limits import ETCD_QUOTA_BYTES
from dormouse_core.policies import Policy
from dormouse_core.spec.durations import Duration
from dormouse_core.spec.objects import DNS_LABEL
from dormouse_kit.etcd.options import add_store_options

from dormouse_operator.kubernetes import secret_options
from dormouse_operator.kubernetes.settings import ClusterSettings, Defaults


@dataclass(frozen=True, slots=True)
class Options:
    store: tuple[str, ...] = ("127.0.0.1:2379",)
    store_ca: str = ""
    store_cert: str = ""
    store_key: str = ""
    store_user: str = ""
    store_password_file: str = ""
    """With a user: the store has users, and this one is root."""
    store_quota: int = ETCD_QUOTA_BYTES
    """etcd's `--quota-backend-bytes`, for members that do not say it themselves (3.4 and 3.5)."""
    gateway_password_file: str = ""
    """The password of the gateways' user in the store, which the operator makes."""
    workers_secret_file: str = ""
    """What functions' passwords are derived from; absent, or without such a file: root's password."""
    keeping: secret_options.SecretOptions | None = None
    """The Secrets of the chart's etcd, which this process keeps; None: somebody else does."""
    store_one_tenant: bool = False
    """All functions are one tenant's: an etcd that does not keep its users apart will do."""
    installation: str = "default"
    name: str = "operator"
    """What this process calls itself to workers and in the leader's key: its pod."""
    node: str = ""
    """The node that it runs on, which is not lost while it runs; '': not told."""
    listen: str = "127.0.0.1:9002"
    """Where gateways' agents report, IP:port; it stands in the leader's key, so they must be able to reach it."""
    control: str = "127.0.0.1:9003"
    """Where people's calls are answered, host:port; the API server says who may ask."""
    metrics: int = 9090
    """The port of /metrics and /healthz; 0: any free one."""
    functions: ClusterSettings = field(default_factory=ClusterSettings)

    @property
    def store_shared(self) -> bool:
        """Whether tenants share the store: each namespace may be one's, and each function has a user of its own."""
        return bool(self.store_user) and not self.store_one_tenant and len(self.functions.namespaces) != 1

    def settings_now(self) -> ClusterSettings:
        """With the certificates as they are in their files now. OSError: they cannot be read."""
        ca, cert, key = map(_text, (self.store_ca, self.store_cert, self.store_key))
        return replace(self.functions, store_ca=ca, store_cert=cert, store_key=key)

    def now(self) -> "Options":
        """As a new process would be told it: files are replaced after this one has parsed them. OSError: they cannot be read."""
        return replace(self, functions=self.settings_now())

    def gateway_password(self) -> str:
        """OSError: it cannot be read."""
        return _text(self.gateway_password_file).strip()


class Requirement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of `matchExpressions`."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        if bool(self.values) != (self.operator in ("In", "NotIn")):
            raise ValueError(f"namespaceSelector: {self.operator} of {self.key}: values go with In and NotIn, and with these only")
        among = f"({','.join(self.values)})"
        said = {"In": f"{self.key} in {among}", "NotIn": f"{self.key} notin {among}", "Exists": self.key, "DoesNotExist": f"!{self.key}"}
        return said[self.operator]


class Selector(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """A selector as Kubernetes' objects have it; empty: none."""

    match_labels: dict[str, str] = {}
    match_expressions: tuple[Requirement, ...] = ()

    @property
    def text(self) -> str:
        """As a query of the API server has it."""
        return ",".join([f"{key}={value}" for key, value in self.match_labels.items()] + [each.text for each in self.match_expressions])


class _File(msgspec.Struct, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The file's fields: those of `Settings` that are not about the store."""

    namespaces: list[str] = []
    namespace_selector: Selector = Selector()
    claim: str = ""
    system_namespace: str = ClusterSettings().system_namespace
    image: str = ClusterSettings().image
    image_pull_policy: str = ClusterSettings().image_pull_policy
    image_pull_secrets: list[str] = []
    gateway: str = ClusterSettings().gateway
    gateway_port: int = ClusterSettings().gateway_port
    gateway_calls: str = ""
    cluster_domain: str = ClusterSettings().cluster_domain
    resources: dict[str, Any] = {}
    defaults: Defaults = Defaults()
    models_size: str = ""
    ids: dict[str, int] = msgspec.field(default_factory=lambda: dict(ClusterSettings().ids))
    policy: Policy = Policy()
    reserved: list[str] = []
    fair_shares: bool = True
    removal_wait: str = ""
    network_policies: bool = True
    ingress_from: list[dict[str, Any]] = []
    egress_to: list[dict[str, Any]] = []


def parse(arguments: Sequence[str]) -> Options:
    """Options from the command line; exits with a readable message when one is wrong."""
    default = Options()
    parser = argparse.ArgumentParser(prog="dormouse_operator --kubernetes")
    parser.add_argument(
        "--kubernetes", action="store_true", required=True, help="serve a cluster, from a pod; --local has options of its own"
    )
    add_store_options(parser)
    parser.add_argument(
        "--store-quota", type=int, default=default.store_quota, metavar="BYTES", help="what etcd was given as --quota-backend-bytes"
    )
    parser.add_argument(
        "--store-one-tenant", action="store_true", help="all functions are one tenant's: the store's users need not be apart"
    )
    parser.add_argument("--gateway-password-file", default="", metavar="FILE", help="the password of the gateways' user in the store")
    parser.add_argument("--workers-secret-file", default="", metavar="FILE", help="what functions' passwords in the store are derived from")
    secret_options.add(parser)
    parser.add_argument("--installation", default=default.installation, help="the name of this installation in the store")
    parser.add_argument("--name", default=default.name, help="what this process calls itself to workers and in the store")
    parser.add_argument("--node", default=default.node, help="the node that this process runs on")
    parser.add_argument("--listen", default=default.listen, metavar="IP:PORT", help="where gateways' agents report")
    parser.add_argument(
        "--control", default=default.control, metavar="HOST:PORT", help="where listings and deletions of sessions are answered"
    )
    parser.add_argument("--metrics", type=int, default=default.metrics, metavar="PORT", help="of /metrics and /healthz; 0: any free one")
    parser.add_argument("--functions", default="", metavar="FILE", help="JSON with the settings of functions' pods and other objects")
    given = vars(parser.parse_args(arguments))
    del given["kubernetes"]
    given["store"] = tuple(given["store"] or default.store)
    if not re.fullmatch(DNS_LABEL, given["installation"]) or len(given["installation"]) > 63:
        parser.error(f"--installation: {given['installation']!r} found, a DNS label is allowed: it becomes a label's value")
    if given["store_quota"] <= 0:
        parser.error(f"--store-quota: {given['store_quota']} found, a number of bytes above 0 is allowed")
    if bool(given["store_user"]) != bool(given["store_password_file"]):
        parser.error("--store-user and --store-password-file go together")
    given["listen"] = addresses.bracketed(given["listen"])
    path = given.pop("functions")
    given["keeping"] = secret_options.chosen(parser, given.pop("secrets"), given.pop("secrets_folder"))
    try:
        file = msgspec.json.decode(Path(path).read_bytes(), type=_File) if path else _File()
        return Options(**given, functions=_settings(file, given))
    except (OSError, ValueError) as error:
        parser.error(f"{error}" if isinstance(error, OSError) else f"--functions: {path}: {error}")


def _settings(file: _File, given: dict[str, Any]) -> ClusterSettings:
    """With how workers reach the store: as we do, by users of their own."""
    fields: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in msgspec.structs.asdict(file).items()}
    fields["removal_wait"] = Duration(file.removal_wait).seconds if file.removal_wait else None
    fields["namespace_selector"] = file.namespace_selector.text
    if file.namespaces and file.namespace_selector.text:
        raise ValueError("namespaces and namespaceSelector found, one of them is allowed")
    ca, cert, key = (_text(given[name]) for name in ("store_ca", "store_cert", "store_key"))
    return ClusterSettings(
        **fields,
        installation=given["installation"],
        store=given["store"],
        store_ca=ca,
        store_cert=cert,
        store_key=key,
        store_auth=bool(given["store_user"]),
        store_secret=_derived_from(given),
    )


def _derived_from(given: dict[str, Any]) -> bytes:
    """While root's password is replaced, the newest."""
    file = given["workers_secret_file"]
    if not file or not Path(file).exists():
        file = given["store_password_file"]
    return "".join(passwords.lines(_text(file))[:1]).encode()


def _text(path: str) -> str:
    """Of the file; '' where there is no path. OSError: it cannot be read, or is no text: DER, where PEM is meant."""
    try:
        return Path(path).read_text() if path else ""
    except UnicodeDecodeError as error:
        raise OSError(f"{path}: no text found, PEM is allowed: {error}") from error
