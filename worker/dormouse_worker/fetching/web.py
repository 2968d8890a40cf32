"""https://: one file by GET, certificates checked against what OpenSSL trusts (`SSL_CERT_FILE` names another bundle).

A redirect is followed to https only, and does not carry a token to another server. The query of a URI may be a signature, so messages leave
it out.
"""

import http.client
import pathlib
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any
from urllib.parse import unquote

from dormouse_core.modeluris import ModelUri

from dormouse_worker.fetching.downloads import PASSING, Passing
from dormouse_worker.models.refusals import ModelInvalid, ModelUnavailable

SILENCE = 30.0  # seconds for which a server may say nothing
CHUNK = 1 << 20


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        if not newurl.startswith("https://"):
            fp.close()
            raise ModelInvalid("spec.model.uri: the server redirects to another scheme than https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextmanager
def opened(url: str, name: str, token: str = "") -> Iterator[Any]:
    """The response. `name`: the URL for messages."""
    request = urllib.request.Request(url, headers={"User-Agent": "dormouse"})  # noqa: S310 - https is all that gets here
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.build_opener(_Redirects).open(request, timeout=SILENCE) as response:
            yield response
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in PASSING:
            raise Passing(f"the server answers {error.code} {error.reason}") from error
        raise ModelUnavailable(f"spec.model.uri: {name}: the server answers {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise Passing(f"the server cannot be reached: {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise Passing(f"the transfer broke off: {str(error) or type(error).__name__}") from error


def read(url: str, name: str, token: str = "") -> Iterator[bytes]:
    with opened(url, name, token) as response:
        length, found = response.headers.get("Content-Length"), 0
        while chunk := response.read(CHUNK):
            found += len(chunk)
            yield chunk
        if length is not None and length.isascii() and length.isdigit() and found != int(length):
            raise Passing(f"the transfer broke off after {found} of {length} bytes")


class Web:
    def __init__(self, model: ModelUri) -> None:
        self.name = model.text.partition("?")[0]
        self._url = model.text
        self._file = pathlib.PurePosixPath(unquote(self.name)).name

    def files(self) -> list[str]:
        return [self._file]

    def read(self, file: str) -> Iterator[bytes]:
        return read(self._url, self.name)
