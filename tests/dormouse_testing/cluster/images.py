"""Images, without a registry: built by buildah, imported into each node's containerd.

`import_image` remembers per node which image id it has, on the node's disk, so that a run after the first imports only what changed.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dormouse_testing.cluster.layout import RECIPES, ROOT, Layout, Node
from dormouse_testing.cluster.nodes import PAUSE
from dormouse_testing.cluster.processes import attempt, run

BASE = "localhost/debian-python:1"
DORMOUSE = "localhost/dormouse:test"
ETCD = "localhost/etcd:test"
MODELS = "localhost/dormouse-models:test"
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"  # pip inside a build trusts what pip outside trusts
BASE_PACKAGES = "python3,python3-venv,libpython3.11,ca-certificates"
SOURCES = ("proto", "core", "kit", "operator", "gateway", "worker", "cli")
CONTEXT = (*SOURCES, "pyproject.toml", "README.md", "LICENSE", "requirements", "deploy/docker")


def pause(layout: Layout) -> None:
    """What holds a pod's namespaces open: forty bytes of C."""
    archive = layout.images / "pause.tar"
    if archive.exists():
        return
    layout.images.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        run("gcc", "-static", "-Os", "-o", f"{folder}/pause", RECIPES / "pause.c")
        Path(folder, "Dockerfile").write_text('FROM scratch\nCOPY pause /pause\nENTRYPOINT ["/pause"]\n')
        build(PAUSE, Path(folder))
    run("buildah", "push", "-q", PAUSE, f"docker-archive:{archive}:{PAUSE}")


def base() -> None:
    """Debian with Python, out of Debian's packages: half a minute, once."""
    if attempt("buildah", "inspect", "--type", "image", BASE):
        return
    with tempfile.TemporaryDirectory() as folder:
        run("mmdebstrap", "-q", "--variant=minbase", f"--include={BASE_PACKAGES}", "bookworm", f"{folder}/base.tar")
        Path(folder, "Dockerfile").write_text(
            "FROM scratch\nADD base.tar /\nENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
        )
        build(BASE, Path(folder))


def etcd(layout: Layout) -> None:
    """Upstream's image in miniature: the binary where upstream has it."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy2(layout.bin / "etcd", folder)
        Path(folder, "Dockerfile").write_text('FROM scratch\nCOPY etcd /usr/local/bin/etcd\nCMD ["/usr/local/bin/etcd"]\n')
        build(ETCD, Path(folder))


def dormouse(root: Path = ROOT, tag: str = DORMOUSE) -> None:
    """The project's image from this tree or another, as deploy/docker/Dockerfile says. Only what it copies is in the context: no caches, no
    tests."""
    base()
    with tempfile.TemporaryDirectory() as folder:
        for name in CONTEXT:
            source, target = root / name, Path(folder, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(source, target)
        build(tag, Path(folder), "-f", f"{folder}/deploy/docker/Dockerfile", "--build-arg", f"BASE={BASE}", "--layers")


def models() -> None:
    """The project's image with the examples where `file://` of a pod leads, as their Dockerfile says: what a team does that ships models as
    images."""
    build(MODELS, ROOT / "examples", "--build-arg", f"BASE={DORMOUSE}", "--layers")


def build(tag: str, context: Path, *options: str) -> None:
    trust = ["--volume", f"{BUNDLE}:{BUNDLE}:ro"] if Path(BUNDLE).exists() else []
    run("buildah", "bud", "-q", "--isolation", "chroot", *trust, *options, "-t", tag, context)


def import_image(layout: Layout, nodes: Iterable[Node], tag: str) -> list[Node]:
    """Those nodes that did not have it yet."""
    identity = run("buildah", "inspect", "--type", "image", "--format", "{{.FromImageID}}", tag).strip()
    marks = {node: node.home / "imported" / hashlib.sha256(tag.encode()).hexdigest()[:16] for node in nodes}
    lacking = [node for node, mark in marks.items() if not mark.exists() or mark.read_text() != identity]
    if not lacking:
        return []
    archive = layout.images / "image.tar"
    archive.unlink(missing_ok=True)
    run("buildah", "push", "-q", "--disable-compression", tag, f"oci-archive:{archive}:{tag}")
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda node: run("ctr", "-a", node.socket, "-n", "k8s.io", "images", "import", archive), lacking))
    archive.unlink()
    for node in lacking:
        marks[node].parent.mkdir(exist_ok=True)
        marks[node].write_text(identity)
    return lacking
