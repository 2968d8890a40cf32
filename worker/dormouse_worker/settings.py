"""Who a worker is: what the supervisor passes on to its child."""

from dataclasses import dataclass

from dormouse_core import limits


@dataclass(frozen=True)
class Settings:
    """What the supervisor passes on. `spec` is the spec file's path; with `standalone` (a model's path) there is neither spec nor store."""

    worker: str
    instance: str
    host: str
    port: int
    advertise: str
    spec: str = ""
    standalone: str = ""
    name: str = ""
    max_batch: int = 32
    revision: str = ""
    message_bytes: int = limits.MESSAGE_BYTES_MAX
    """The gateway has the installation's own limit; this is the highest that it may have."""
