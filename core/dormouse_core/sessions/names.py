"""The name of a session, and the shard that it falls into.

The gateway's Lua filter computes the same two functions; `tests/vectors/sessions.json` pins both sides. Ids are names, not secrets.
"""

import zlib
from urllib.parse import quote

from dormouse_core.errors import InvalidArgument
from dormouse_core.limits import SESSION_ID_CHARACTERS, TENANT_CHARACTERS


def session_key(tenant: str, session: int | str, field: str = "sequence_id") -> str:
    """The session's name in the store: ``{tenant}/i:{int}`` or ``{tenant}/s:{string}``, parts percent-encoded (RFC 3986).

    An int is within int64. Int 7 and string "7" are two sessions. InvalidArgument: empty or over-long string, a tenant that is too long.
    `field`: where the caller wrote the id, for that message.
    """
    if len(tenant) > TENANT_CHARACTERS:
        raise InvalidArgument(f"dormouse-tenant: {len(tenant)} characters found, at most {TENANT_CHARACTERS} are allowed")
    if isinstance(session, int):
        if not -(2**63) <= session < 2**63 or session == 0:
            raise InvalidArgument(f"sequence_id: {session} found, an int64 other than 0 is allowed")
        return f"{quote(tenant, safe='')}/i:{session}"
    if not 1 <= len(session) <= SESSION_ID_CHARACTERS:
        raise InvalidArgument(f"{field}: a string of {len(session)} characters found, 1 to {SESSION_ID_CHARACTERS} characters are allowed")
    return f"{quote(tenant, safe='')}/s:{quote(session, safe='')}"


def shard_of(key: str, shards: int) -> int:
    """The shard of the session `key` (as `session_key` made it): crc32 of its bytes, modulo the function's fixed shard count."""
    return zlib.crc32(key.encode("ascii")) % shards
