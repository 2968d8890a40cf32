"""Having a cluster for a while: the one that KUBECONFIG names, or our own on this machine, which ends here unless it ran already."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from dormouse_testing.cluster import images, lifecycle, tools
from dormouse_testing.cluster.client import IMAGES, Cluster
from dormouse_testing.cluster.layout import Layout


class Unavailable(Exception):
    """No cluster can be had here; the text says why."""


@contextlib.contextmanager
def cluster(nodes: int = 1) -> Iterator[Cluster]:
    """Unavailable, or ClusterError when it should have come up."""
    layout = Layout.here()
    named = os.environ.get("KUBECONFIG", "")
    if named and Path(named) != layout.kubeconfig:
        yield _named(Path(named))
        return
    if reason := tools.impossible():
        raise Unavailable(reason)
    found = lifecycle.running(layout)
    if not found:
        lifecycle.up(layout, nodes)
    made = Cluster(layout.kubeconfig, layout)
    try:
        yield made
    finally:
        made.close()
        if not found:
            lifecycle.down(layout)


def _named(kubeconfig: Path) -> Cluster:
    for program in ("kubectl", "helm"):
        if shutil.which(program) is None:
            raise Unavailable(f"KUBECONFIG names a cluster, and there is no {program} to use it with")
    if lacking := [name for name in IMAGES if not os.environ.get(name)]:
        raise Unavailable(f"KUBECONFIG names a cluster; {' and '.join(lacking)} must name images that it can pull")
    return Cluster(kubeconfig)


def bring_images(held: Cluster, *, models: bool = False) -> None:
    """The project's image of this tree into every node, and etcd's; `models`: also the one with the examples' models. Nothing to do for a
    cluster that is not ours."""
    if held.layout is None:
        return
    tags = [images.DORMOUSE, images.ETCD]
    images.dormouse()
    images.etcd(held.layout)
    if models:
        images.models()
        tags.append(images.MODELS)
    for tag in tags:
        images.import_image(held.layout, held.nodes, tag)
