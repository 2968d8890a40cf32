"""Whether the kernel lets this user watch one more file: Envoy aborts where it may not (fs.inotify.max_user_instances, often 128)."""

import ctypes
import os


def available() -> bool:
    found = ctypes.CDLL(None).inotify_init1(os.O_CLOEXEC)
    if found < 0:
        return False
    os.close(found)
    return True
