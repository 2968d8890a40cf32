"""What a handler's process looks like to the handler: as a script's would.

Envoy finds the interpreter with the help of three variables that are not the user's (`bootstrap.environment`), and an interpreter inside
another program takes whatever Python comes first on PATH for its own executable. A child process of a handler would inherit all that:
another Python would run as ours, and `sys.executable` would have other packages. And pyvoy puts the current folder in front of `sys.path`:
a `json.py` that lies there would run as ours, so Envoy starts in another folder. Once Python runs, all of it is put back, before a handler
is imported. OMP_NUM_THREADS and OPENBLAS_NUM_THREADS stay: children share the same CPUs.

`taken` runs in the supervisor and imports nothing heavy; `restore` runs in the child.
"""

import contextlib
import os
import socket
import sys
from collections.abc import Mapping
from typing import Any

VARIABLES = ("LD_PRELOAD", "PYTHONHOME", "PYTHONPATH")
"""What `bootstrap.environment` sets over whatever was there."""
_STARTS = ("os.system", "os.posix_spawn", "os.exec", "os.fork", "os.forkpty", "os.spawn", "subprocess.Popen")
ELSEWHERE = "/"
"""Where Envoy starts: a folder in which nobody but root can put a module."""
_ATTRIBUTES = ("executable", "_base_executable", "prefix", "exec_prefix")


def taken() -> dict[str, Any]:
    """What the interpreter that started the worker has; it goes to the child with its settings."""
    return {
        "variables": {name: os.environ.get(name) for name in VARIABLES},
        "folder": _here(),
        "path": [path for path in sys.path if path],
        "interpreter": {name: getattr(sys, name) for name in _ATTRIBUTES},
    }


def restore(before: Mapping[str, Any], own: tuple[str, ...], listen: str) -> None:
    """Puts back what `taken` found, removes our `own` variables, and closes to child processes every file that is open by now, and what
    Envoy will open at `listen` (host:port or unix:PATH)."""
    for name, value in before["variables"].items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    for name in own:
        os.environ.pop(name, None)
    for name, value in before["interpreter"].items():
        setattr(sys, name, value)
    sys.path[:] = before["path"]
    with contextlib.suppress(OSError):  # it is gone
        os.chdir(before["folder"])
    _close_to_children("")
    sys.addaudithook(_before_a_start)
    os.register_at_fork(after_in_child=lambda: _close_served(listen))


def _here() -> str:
    try:
        return os.getcwd()
    except OSError:  # it is gone
        return ELSEWHERE


def _before_a_start(event: str, _: tuple[Any, ...]) -> None:
    """Envoy opens sockets that a child process inherits: one that outlived us would keep callers' connections open, and the port taken."""
    if event in _STARTS:
        _close_to_children("socket:")


def _close_served(listen: str) -> None:
    """In a process that was forked and goes on as Python (`os.fork`, multiprocessing's "fork"): it would hold the worker's port beyond the
    worker's death, and take connections there that it never answers; and callers would not see theirs end."""
    family, name = _served(listen)
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            sock = socket.socket(fileno=int(entry))
            with contextlib.suppress(OSError):
                found = sock.getsockname()
                if sock.family in family and name == (found if isinstance(name, str) else found[1]):
                    sock.close()
            sock.detach()


def _served(listen: str) -> tuple[tuple[socket.AddressFamily, ...], str | int]:
    """The families of the worker's sockets, and their path or port."""
    if listen.startswith("unix:"):
        return (socket.AF_UNIX,), listen.removeprefix("unix:")
    return (socket.AF_INET, socket.AF_INET6), int(listen.rpartition(":")[2])


def _close_to_children(kind: str) -> None:
    """Files of this kind that are open now are not inherited by programs that are started."""
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own is gone
            if int(entry) > 2 and os.readlink(f"/proc/self/fd/{entry}").startswith(kind):
                os.set_inheritable(int(entry), False)
