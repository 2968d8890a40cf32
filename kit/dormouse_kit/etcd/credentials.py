"""What etcd knows us by, read anew where it comes from files: a Secret's files are replaced under a running process.

Certificates are read for each connection, a password each time it is shown: what was replaced is used from the next connection or token on,
and etcd ends the tokens of a user whose password changes. A file that cannot be read just now, because it is being replaced, counts as it
was.

While a password is replaced its file has two lines: the new one and the one before (`dormouse_core.passwords`). Both are shown, in this
order.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
from dormouse_core import passwords

Password = str | Path
"""The password, or the file that has it; of several lines any may be the valid one."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. `ca` None: the system's roots. `cert` and `key` go together."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        ca, cert, key = (path.read_bytes() if path else None for path in (self.ca, self.cert, self.key))
        return grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=cert)


class Credentials:
    """OSError at the start: a file is not there."""

    def __init__(self, tls: TlsFiles | None, password: Password) -> None:
        self._tls = tls
        self._file = password if isinstance(password, Path) else None
        self._text = password.read_text().strip() if isinstance(password, Path) else password
        self._channel = tls.credentials() if tls is not None else None

    def channel(self) -> grpc.ChannelCredentials | None:
        """None: no TLS."""
        if self._tls is not None:
            with contextlib.suppress(OSError):
                self._channel = self._tls.credentials()
        return self._channel

    def passwords(self) -> Sequence[str]:
        """Those that may be valid, the newest first; at least one."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._text = self._file.read_text().strip()
        return passwords.lines(self._text) or [self._text]
