"""Who a worker is: what the supervisor passes on to its child."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dormouse_core import limits


@dataclass(frozen=True)
class WorkerIdentity:
    """What the supervisor passes on. `spec` is the spec file's path; with `standalone` (a model's path) there is neither spec nor store."""

    worker: str
    instance: str
    listen: str
    advertise: str
    admin: str = ""
    """Envoy's, the path of a Unix socket."""
    spec: str = ""
    standalone: str = ""
    name: str = ""
    max_batch: int | None = None
    revision: str = ""
    message_bytes: int = limits.MESSAGE_BYTES_MAX
    """The gateway has the installation's own limit; this is the highest that it may have."""
    log: int = 2
    """The file descriptor of the real standard error; 1 and 2 are a pipe to the supervisor."""
    marks: int = -1
    """The file descriptor of the marks."""
    before: Mapping[str, Any] = field(default_factory=dict)
    """What `surroundings.taken` found."""
