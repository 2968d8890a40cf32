"""Where a function's own volumes may not be mounted: over what its worker's pod has for itself, however the path is spelt."""

from dormouse_core.modeluris import MOUNT

OWN = "dormouse-"
"""What names of the pod's own volumes begin with."""

RESERVED = ("/etc/dormouse", MOUNT, "/var/lib/dormouse", "/tmp", "/dev", "/proc", "/sys")  # noqa: S108 - the pod's own empty folder
ALLOWED = f"a folder that is not / and not in one of {', '.join(RESERVED)} is allowed"
ALLOWED_NAME = f"none that begins with {OWN} is allowed"

_SEPARATOR = r"(/\.?)*/"
_FOLDERS = "|".join(_SEPARATOR.join(folder.strip("/").split("/")) for folder in RESERVED)
TAKEN = rf"^(/\.?)*$|/\.\.(/|$)|^{_SEPARATOR}({_FOLDERS})(/|$)"
"""`taken`, as a regular expression of RE2's syntax."""


def taken(path: str) -> bool:
    """As the container's runtime reads paths: `.` and empty parts are nothing."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    plain = "/" + "/".join(parts)
    return plain == "/" or ".." in parts or any(plain == folder or plain.startswith(f"{folder}/") for folder in RESERVED)
