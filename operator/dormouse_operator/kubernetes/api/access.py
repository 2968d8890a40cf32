"""Where the API server is and how it knows us: from the pod's service account, or from kubeconfigs (`KUBECONFIG`) as people have them: exec
plugins, OIDC, proxies, several files. `kubernetes.aio.config` reads all of them.

A service account's token lasts an hour or less and its file is replaced under a running process; what a plugin gives expires, too. So
before a request it is read again when it is a minute old, and soon after the server refused it (401). What cannot be read again leaves what
there was, which may still do.

What the library leaves to us. Of several kubeconfigs the first that names a current context decides, as for kubectl; the library takes the
last one's, which is another cluster. A token's file may end with a newline. A plugin that fails is a line of its log, and the operator
would go on as nobody. One that does not end cannot be ended from here; there is never a second one beside it.
"""

import asyncio
import functools
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from dormouse_core.errors import FailedPrecondition, text_of
from dormouse_kit import log
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config.config_exception import ConfigException
from kubernetes.aio.config.incluster_config import InClusterConfigLoader
from kubernetes.aio.config.kube_config import load_kube_config

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
RENEW = 60.0  # seconds after which what was read is read again
REFUSED = 5.0  # and after which it is where the server refuses it
PLUGIN = 30.0  # seconds that a plugin, or who issues tokens, may take

UNREADABLE = (ConfigException, OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError)

Read = Callable[[bool], Awaitable[Configuration]]
"""True: nothing of what was read before is used."""


class Access:
    """`configuration`: kubernetes.aio's, as it was last read; of this object for as long as it lives. `read`: reads it again."""

    def __init__(self, configuration: Configuration, read: Read | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.configuration = configuration
        self._read = read
        self._clock = clock
        self._at = clock()
        self._refused = False
        self._failing = False
        self._renewing = False
        self.reads = 0
        """How often it was read again."""

    @property
    def server(self) -> str:
        """https://host:port"""
        return str(self.configuration.host)

    @property
    def authorization(self) -> str:
        """Of a request's header; '': none."""
        return str(self.configuration.api_key.get("BearerToken", ""))

    def refused(self) -> None:
        """The server says 401."""
        self._refused = True

    async def renew(self) -> None:
        """Before a request, and of any thread. Who comes meanwhile goes on with what there is."""
        age = self._clock() - self._at
        if self._read is None or self._renewing or age < (REFUSED if self._refused else RENEW):
            return
        refused, self._refused = self._refused, False
        self._renewing, self._at = True, self._clock()
        try:
            found = await self._read(refused)
        except FailedPrecondition as error:
            if not self._failing:
                log.warning("access to the API server could not be read again; what was read before goes on", error=error.message)
            self._failing = True
            return
        finally:
            self._renewing = False
        self._failing = False
        for name in ("api_key", "cert_file", "key_file"):
            setattr(self.configuration, name, getattr(found, name))
        self.reads += 1


async def find(environment: Mapping[str, str] = os.environ) -> Access:
    """FailedPrecondition: neither a pod's service account nor a kubeconfig is there, or it cannot be used."""
    if "KUBECONFIG" not in environment and environment.get("KUBERNETES_SERVICE_HOST") and (SERVICE_ACCOUNT / "token").exists():
        return await _access(functools.partial(_in_pod, environment))
    named = environment.get("KUBECONFIG", str(Path.home() / ".kube" / "config")).split(os.pathsep)
    paths = [name for name in named if name and os.path.isfile(name)]  # noqa: ASYNC240  # nothing else runs yet
    if not paths:
        raise FailedPrecondition("no access to a cluster: this is no pod with a service account, and KUBECONFIG names no file")
    return await kubeconfig(os.pathsep.join(paths))


async def kubeconfig(paths: str) -> Access:
    """The current context of these files, as of `KUBECONFIG`. FailedPrecondition: there is none, none that is complete, or its login
    fails."""
    return await _access(_Kubeconfigs(paths).read)


async def _access(read: Read) -> Access:
    return Access(await read(True), read)


async def _in_pod(environment: Mapping[str, str], anew: bool) -> Configuration:
    loader = InClusterConfigLoader(
        str(SERVICE_ACCOUNT / "token"),
        str(SERVICE_ACCOUNT / "ca.crt"),
        try_refresh_token=False,  # `Access` does, and outlives a file that is just being replaced
        environ={"KUBERNETES_SERVICE_PORT": "443", **environment},
    )
    found = Configuration()
    try:
        loader.load_and_set(found)
    except UNREADABLE as error:
        raise FailedPrecondition(f"{SERVICE_ACCOUNT}: no service account that is complete: {text_of(error)}") from error
    return _stripped(found)


class _Kubeconfigs:
    """`paths`: as in KUBECONFIG."""

    def __init__(self, paths: str) -> None:
        self._paths = paths
        self._loader: Any = None
        """It knows until when what a plugin gave is good."""
        self._reading: asyncio.Future[None] | None = None

    async def read(self, anew: bool) -> Configuration:
        if self._reading is not None and not self._reading.done():
            raise FailedPrecondition(f"{self._paths}: the program that gives a token has not ended yet")
        found = Configuration()
        self._reading = asyncio.ensure_future(self._load(found, anew))
        done, _ = await asyncio.wait({self._reading}, timeout=PLUGIN)
        if not done:
            raise FailedPrecondition(f"{self._paths}: the program that gives a token took more than {PLUGIN:.0f} s")
        try:
            self._reading.result()
            user = self._loader.current_context["context"].get("user")
        except UNREADABLE as error:
            raise FailedPrecondition(f"{self._paths}: no kubeconfig whose current context is complete: {_told(error)}") from error
        if found.host == Configuration().host:
            raise FailedPrecondition(f"{self._paths}: no kubeconfig whose current context is complete: its cluster has no server")
        if user and "BearerToken" not in found.api_key and not found.cert_file:
            raise FailedPrecondition(
                f"{self._paths}: the user {user} has no token, no certificate and no program that gives one, or the program failed"
            )
        return _stripped(found)

    async def _load(self, found: Configuration, anew: bool) -> None:
        if anew or self._loader is None:
            context = _context(self._paths)
            self._loader = await load_kube_config(self._paths, context=context, client_configuration=found, persist_config=False)
        else:
            await self._loader.load_and_set(found)


def _told(error: Exception) -> str:
    """What people can read of it: where the library stumbles over a part that is not there, it does not say which."""
    told = isinstance(error, ConfigException | OSError | ValueError | yaml.YAMLError)
    return text_of(error) if told else "a cluster, user or context is missing or of another form"


def _context(paths: str) -> str | None:
    """The current context of the first file that names one."""
    for path in paths.split(os.pathsep):
        data = yaml.safe_load(Path(path).read_text()) or {}
        if context := data.get("current-context"):
            return str(context)
    raise ConfigException("no current-context found")


def _stripped(found: Configuration) -> Configuration:
    found.api_key = {name: " ".join(key.split()) for name, key in found.api_key.items()}
    return found
