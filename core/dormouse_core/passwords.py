"""When the passwords of the chart's etcd are made, and how they are replaced without a moment in which a reader has the wrong one.

A password's text has one line, or two while it is replaced: the new one and the one before. Who logs in tries them in this order. So

1. the new line is written, in front, and everybody gets the time to read it,
2. the leader sets the new one in etcd, for whom one of the two lines is right at every moment,
3. the line of the one before goes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from dormouse_core.limits import CREDENTIAL_SPREAD_SECONDS

DAY = 86400.0
ROOT = "operator"
GATEWAY = "gateway"
WORKERS = "workers"
"""What functions' passwords are derived from. It stays when root's password is replaced, or every worker would need another."""
USERS = (ROOT, GATEWAY)
"""Whose passwords are replaced."""
KEYS = (*USERS, WORKERS)


class Do(Enum):
    NOTHING = "nothing"
    MAKE = "make what is missing"
    DATE = "write down since when they are there"
    BEGIN = "write new ones beside those before"
    SETTLE = "set the new ones in etcd, and forget those before"


@dataclass(frozen=True, slots=True)
class Observed:
    """`texts`: by key, as they are in the Secret. `changed`: when they last changed, in seconds since the epoch; None: not known."""

    texts: Mapping[str, str]
    changed: float | None = None
    asked: bool = False


def plan(found: Observed, days: float, now: float) -> Do:
    """`days`: how old passwords become; 0: as old as they like."""
    if any(not lines(found.texts.get(key, "")) for key in KEYS):
        return Do.MAKE
    if found.changed is None or found.changed > now + DAY:
        return Do.DATE
    if any(len(lines(found.texts[key])) > 1 for key in USERS):
        return Do.SETTLE if now >= found.changed + CREDENTIAL_SPREAD_SECONDS else Do.NOTHING
    if found.asked or (days and now >= found.changed + days * DAY):
        return Do.BEGIN
    return Do.NOTHING


def made(texts: Mapping[str, str], fresh: Mapping[str, str]) -> dict[str, str]:
    """With what is missing. Where root has a password already, functions' were derived from it: by an operator that knew no other way."""
    before = {WORKERS: lines(texts.get(ROOT, ""))[:1]}
    return {key: texts.get(key) or "\n".join(before.get(key) or [fresh[key]]) for key in KEYS}


def begun(texts: Mapping[str, str], fresh: Mapping[str, str]) -> dict[str, str]:
    return {**texts, **{key: f"{fresh[key]}\n{lines(texts[key])[0]}" for key in USERS}}


def settled(texts: Mapping[str, str]) -> dict[str, str]:
    return {key: lines(text)[0] if key in KEYS else text for key, text in texts.items()}


def lines(text: str) -> Sequence[str]:
    """The passwords that may be valid, the newest first."""
    return [line.strip() for line in text.splitlines() if line.strip()]
