"""When the certificates of the chart's etcd are made, and the order in which they are replaced: nobody meets one that it does not trust.

An *authority* issues the *server certificate*, which etcd's members show to clients and to each other. Who connects checks it against
the *trusted* authorities, the file `ca.crt`. etcd reads the server certificate at each handshake, but `ca.crt` only when it starts; all
others read both for each new connection. So a new server certificate of the same authority can be issued at any time, and another authority

1. is trusted first,
2. issues a month later, or when it is asked for and everybody has had the time to read it; and when every one of several members has
   started since,
3. and the one before is trusted until the new certificate has been shown for a day.

`plan` says the next step from what was observed; whoever asks it writes that one step and asks again.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum

from dormouse_core.limits import AUTHORITY_RENEWAL_DAYS, AUTHORITY_TRUSTED_DAYS, CREDENTIAL_SPREAD_SECONDS

DAY = 86400.0
BACKDATED = 3600.0
"""Seconds before its making from which a certificate is valid: a client's clock may be behind."""
START_SPREAD = 150.0
"""Seconds after which a container that starts finds what was written into its Secret: the kubelet looks each minute or so."""
FORGOTTEN_AFTER = DAY


@dataclass(frozen=True, slots=True)
class Lifetime:
    """Of a certificate, in seconds since the epoch."""

    not_before: float
    not_after: float


@dataclass(frozen=True, slots=True)
class Authority:
    """`id`: its certificate's fingerprint. `asked`: somebody wants another."""

    id: str
    lifetime: Lifetime
    asked: bool = False


@dataclass(frozen=True, slots=True)
class Server:
    """`issuer`: the fingerprint of the trusted authority that signed it; '' where none did. `asked`: somebody wants another."""

    issuer: str
    lifetime: Lifetime
    hosts: frozenset[str]
    asked: bool = False


@dataclass(frozen=True, slots=True)
class Observed:
    """`trusted_since`: when the authority joined `trusted`; None: not known, as where somebody else wrote it. `members`: when each member
    started; None: not known, which is never taken for long ago."""

    authority: Authority | None = None
    trusted: Mapping[str, Lifetime] | None = None
    trusted_since: float | None = None
    server: Server | None = None
    members: tuple[float, ...] | None = None


class Do(Enum):
    NOTHING = "nothing"
    AUTHORITY = "make an authority"
    TRUST = "trust the authority"
    """and write down since when"""
    ISSUE = "issue a server certificate"
    """and trust its authority, where it is the first"""
    FORGET = "forget authorities"
    WAIT = "wait"


@dataclass(frozen=True, slots=True)
class Step:
    """`why`: for the log. `ids`: the authorities to forget."""

    do: Do
    why: str = ""
    ids: tuple[str, ...] = ()


def plan(found: Observed, hosts: Collection[str], several: bool, now: float) -> Step:
    """`hosts`: the names that the server certificate must have. `several`: etcd has more than one member, which check each other."""
    authority, server, trusted = found.authority, found.server, found.trusted or {}
    if authority is None:
        return Step(Do.AUTHORITY, "there is none")
    if authority.asked and (server is None or server.issuer == authority.id):
        return Step(Do.AUTHORITY, "asked for")  # one that has not issued yet comes first, or it could be put off until nothing is valid
    if now >= authority.lifetime.not_after - AUTHORITY_RENEWAL_DAYS * DAY:
        return Step(Do.AUTHORITY, "the one before ends")
    if server is None:
        return Step(Do.ISSUE, "there is none")
    if authority.id not in trusted:
        return Step(Do.TRUST, "it is to issue")
    if server.issuer != authority.id and (found.trusted_since is None or found.trusted_since > now + BACKDATED):
        return Step(Do.TRUST, "since when is not known")
    why = _due(server, authority, found.trusted_since, hosts, now)
    if why:
        waits = "" if now >= server.lifetime.not_after else _untrusted(found, authority, server, several, now)
        return Step(Do.WAIT, f"{why}; {waits}") if waits else Step(Do.ISSUE, why)
    old = _forgotten(trusted, authority, server, now)
    return Step(Do.FORGET, "nobody shows a certificate of theirs", old) if old else Step(Do.NOTHING)


def _due(server: Server, authority: Authority, trusted_since: float | None, hosts: Collection[str], now: float) -> str:
    """Why another server certificate is wanted; '': none is. After two thirds of its life: a third is left to notice that it fails."""
    trusted_for = 0.0 if trusted_since is None else now - trusted_since
    lacking = sorted(set(hosts) - server.hosts)
    length = server.lifetime.not_after - server.lifetime.not_before
    if server.asked:
        return "asked for"
    if lacking:
        return f"it lacks the name {lacking[0]}"
    if server.issuer != authority.id and trusted_for >= AUTHORITY_TRUSTED_DAYS * DAY:
        return "another authority issues now"
    if now >= server.lifetime.not_before + length * 2 / 3:
        return "two thirds of its life are over"
    return ""


def _untrusted(found: Observed, authority: Authority, server: Server, several: bool, now: float) -> str:
    """Who may not trust the authority yet; '': everybody does."""
    if server.issuer == authority.id:
        return ""
    since = found.trusted_since
    if since is None or now < since + CREDENTIAL_SPREAD_SECONDS:  # never None here: `plan` has it written down first
        return "the new authority is not known to everybody yet"
    if not several:
        return ""
    if found.members is None:
        return "it is not known when etcd's members started"
    early = [start for start in found.members if start < since + START_SPREAD]
    if early or not found.members:
        return f"{len(early)} of etcd's members run since before the new authority was trusted: restart them, one at a time"
    return ""


def _forgotten(trusted: Mapping[str, Lifetime], authority: Authority, server: Server, now: float) -> tuple[str, ...]:
    shown_since = server.lifetime.not_before + BACKDATED
    unused = [each for each in trusted if each not in (authority.id, server.issuer)]
    return tuple(each for each in unused if now >= min(shown_since + FORGOTTEN_AFTER, trusted[each].not_after))
