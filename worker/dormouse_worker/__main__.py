"""`python -m dormouse_worker`: one worker under its supervisor."""

import argparse
import contextlib
import json
import os
import socket
import tempfile

from dormouse_core import addresses

from dormouse_worker.process import bootstrap, supervisor

TERMINATION_LOG = "/dev/termination-log"


def main() -> None:
    parser = argparse.ArgumentParser(prog="dormouse_worker", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--spec", metavar="FILE", help="the worker's spec file")
    what.add_argument("--standalone", metavar="MODEL.onnx", help="serve one stateless model without a store, for measurements")
    parser.add_argument("--name", default="model", help="with --standalone: the model's name")
    parser.add_argument("--max-batch", type=int, help="with --standalone: rows that may run together; by default an experiment decides")
    parser.add_argument("--listen", required=True, metavar="HOST:PORT|unix:PATH", help="where calls are taken; port 0: any free one")
    parser.add_argument(
        "--advertise", metavar="HOST:PORT", help="the address at which gateways and the operator reach it; by default --listen"
    )
    parser.add_argument("--instance", default="worker", help="the name of this worker's pod or process")
    parser.add_argument("--admin", metavar="SOCKET", help="where Envoy's admin interface listens; by default in a temporary folder")
    parser.add_argument("--reason", metavar="FILE", help=f"where to write why the worker failed; by default {TERMINATION_LOG} if it exists")
    options = parser.parse_args()
    listen = options.listen
    if not listen.startswith(bootstrap.UNIX):
        host, number = bootstrap.parse(listen)
        port, _held = hold(host, number)
        listen = f"{listen.rpartition(':')[0]}:{port}"
    advertise = addresses.bracketed(options.advertise or listen)
    child: dict[str, object] = {
        "standalone": os.path.abspath(options.standalone) if options.standalone else "",
        "name": options.name,
        "max_batch": options.max_batch,
    }
    label, store = options.name, {}
    if options.spec:
        child["spec"] = os.path.abspath(options.spec)
        with open(options.spec) as file:
            found = json.load(file)
        child["revision"] = found.get("revision", "")
        label, store = f"{found.get('namespace')}/{found.get('name')}", found.get("store", {})
    with contextlib.ExitStack() as stack:
        admin = os.path.abspath(options.admin) if options.admin else ""
        if not admin:  # else no folder is made: one that is killed would leave it behind
            admin = os.path.join(stack.enter_context(tempfile.TemporaryDirectory(prefix="dormouse-")), "admin.sock")
        supervisor.main(
            supervisor.Options(
                listen=listen,
                advertise=advertise,
                instance=options.instance,
                admin=admin,
                reason=options.reason or (TERMINATION_LOG if os.path.exists(TERMINATION_LOG) else ""),
                child=child,
                label=label,
                store=store,
            )
        )


def hold(host: str, port: int) -> tuple[int, socket.socket]:
    """A port, and a socket that keeps it ours while a child restarts: bound, never listening, so that it gets no connection."""
    held = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind((host, port))
    return int(held.getsockname()[1]), held


if __name__ == "__main__":
    main()
