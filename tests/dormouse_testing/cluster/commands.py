"""The command line: `tests/cluster/cluster`."""

import argparse
import os
import sys
from collections.abc import Sequence

from dormouse_testing.cluster import images, lifecycle, nodes
from dormouse_testing.cluster.layout import ClusterError, Layout, Node, Timing

PROGRAMS = ("kubectl", "helm")
ACTIONS = {"isolate": nodes.isolate, "rejoin": nodes.rejoin, "freeze": nodes.freeze, "thaw": nodes.thaw}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="cluster", description="A real Kubernetes on this machine, for tests: no Docker, no registry.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("prepare", help="install and build what a cluster needs (6 to 9 minutes once, seconds afterwards)")
    start = commands.add_parser("up", help="start it; prints the line that points kubectl at it")
    start.add_argument("--nodes", type=int, default=int(os.environ.get("CLUSTER_NODES", "1")), choices=range(1, 10), metavar="N")
    start.add_argument("--grace", default=Timing().grace, help="silence after which a node is NotReady (%(default)s)")
    start.add_argument("--toleration", type=int, default=Timing().toleration, help="seconds that pods stay on such a node (%(default)s)")
    commands.add_parser("down", help="stop it and leave nothing but caches")
    commands.add_parser("purge", help="down, and the nodes' disks go too")
    commands.add_parser("images", help="build the project's image and etcd's, and import them into every node")
    for name in PROGRAMS:
        commands.add_parser(name, help=f"{name} of this cluster, with whatever follows")
    for name, what in (
        ("lose", "power cut: its processes and pods are gone"), ("start", "a lost node comes back"),
        ("isolate", "its link goes down, its pods run on"), ("rejoin", "its link comes up"),
        ("freeze", "all its processes stand still"), ("thaw", "they go on"),
    ):  # fmt: skip
        commands.add_parser(name, help=what).add_argument("node", metavar="NODE")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    layout = Layout.here()
    try:
        if words and words[0] in PROGRAMS:
            _become(layout, words)  # before argparse, which would take the program's options for its own
        _do(layout, parser().parse_args(words))
    except ClusterError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    return 0


def _do(layout: Layout, options: argparse.Namespace) -> None:
    match options.command:
        case "prepare":
            lifecycle.prepare(layout)
        case "up":
            lifecycle.up(layout, options.nodes, Timing(options.grace, options.toleration))
            print(f"export KUBECONFIG={layout.kubeconfig}")
        case "down" | "purge":
            lifecycle.down(layout)
            if options.command == "purge":
                lifecycle.purge(layout)
        case "images":
            images.dormouse()
            images.etcd(layout)
            for tag in (images.DORMOUSE, images.ETCD):
                images.import_image(layout, lifecycle.current_nodes(layout), tag)
        case "lose":
            nodes.lose(layout, _node(layout, options.node))
        case "start":
            node = _node(layout, options.node)
            nodes.start(layout, node, [other for other in layout.known_nodes() if other != node])  # also those that are lost now
        case command:
            ACTIONS[command](_node(layout, options.node))


def _become(layout: Layout, words: Sequence[str]) -> None:
    if not lifecycle.running(layout):
        raise ClusterError("the cluster is down; `up` starts it")  # its address would be somebody else's
    program = [layout.kube, "kubectl"] if words[0] == "kubectl" else [str(layout.bin / "helm")]
    os.execve(program[0], [*program, *words[1:]], {**os.environ, "KUBECONFIG": str(layout.kubeconfig)})


def _node(layout: Layout, name: str) -> Node:
    for node in layout.known_nodes():
        if node.name == name:
            return node
    raise ClusterError(f"{name!r} found, {', '.join(node.name for node in layout.known_nodes()) or 'no node'} is there")
