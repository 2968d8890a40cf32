"""etcd as a `dormouse_core.seams.Store`.

What the libraries at hand do not give, and the session protocol needs: the response header's revision, TLS, several endpoints with
fail-over for watches too, and no transaction that is ever sent twice (rule *read-outcome*). aetcd lends its generated messages; everything
else is here (docs/decisions/0010-store-client.md). `connections` finds a member that answers, `messages` translates, `watching` follows
changes, `store` puts them together; `members` looks after each member.
"""

from dormouse_kit.etcd.credentials import TlsFiles
from dormouse_kit.etcd.members import EtcdMembers
from dormouse_kit.etcd.store import EtcdStore

__all__ = ["EtcdMembers", "EtcdStore", "TlsFiles"]
