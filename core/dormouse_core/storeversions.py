"""Whether an etcd keeps its users apart: a function's user, whose password every handler has, from what is another function's. Pure.

Each line of releases mended these at its own version; one from before any of them lets a handler, or nobody at all, read and write every
session of every tenant. (What etcd calls them: https://github.com/etcd-io/etcd/security/advisories.)

- GHSA-rfx7-8w68-q57q, CVE-2026-33343 (3.5.28, 3.6.9): a transaction within a transaction asks for no rights, and for no user.
- GHSA-q8m4-xhhv-38mg (the same): `Alarm`, `MemberList`, leases and `Compact` without a user.
- CVE-2026-44283 (3.5.30, 3.6.11): a put in a transaction tells what was there, or attaches itself to another's lease.
- GHSA-xg4h-6gfc-h4m8, CVE-2026-73499 (3.5.33, 3.6.14, 3.7.1): a watch that begins at a key of one's own goes to the end of all.

The last is mended in no 3.4.
"""

import re
from collections.abc import Mapping

MENDED = {(3, 5): 33, (3, 6): 14, (3, 7): 1}
"""The first patch of each line without them. A later line has them all mended, an earlier one has not."""
ALLOWED = ", ".join(f"{major}.{minor}.{patch}+" for (major, minor), patch in MENDED.items())
_VERSION = re.compile(r"([0-9]{1,6})\.([0-9]{1,6})\.([0-9]{1,6})([-+].*)?")


def keeps_apart(version: str) -> bool:
    """False also where it cannot be read: then nobody knows."""
    match = _VERSION.fullmatch(version)
    if match is None:
        return False
    major, minor, patch = map(int, match.groups()[:3])
    if (match[4] or "").startswith("-"):
        patch -= 1  # comes before the release that it is named by
    return patch >= MENDED[major, minor] if (major, minor) in MENDED else (major, minor) > max(MENDED)


def refusal(versions: Mapping[str, str]) -> str | None:
    """Why an etcd whose members have these versions, by endpoint, may not be shared by tenants; '': it may. None: nobody has said its
    version yet."""
    if not versions:
        return None
    old = {endpoint: version for endpoint, version in sorted(versions.items()) if not keeps_apart(version)}
    if not old:
        return ""
    found = ", ".join(f"{version or 'no version'} at {endpoint}" for endpoint, version in old.items())
    return (
        f"etcd {found} found, {ALLOWED} is allowed where several namespaces share it: an older one lets any function's code read and write "
        "every session (CVE-2026-33343, CVE-2026-44283, CVE-2026-73499). Upgrade it; or where all of them are one tenant's, say so: "
        "etcd.external.oneTenant"
    )
