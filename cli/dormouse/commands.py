"""What each command but `up` does. Each takes argparse's options and prints; errors are DormouseError."""

import sys
import time
from argparse import Namespace

import grpc
from dormouse_core.errors import Code, DormouseError, InvalidArgument, Unavailable
from dormouse_core.plain import plain
from dormouse_proto import control_pb2, control_pb2_grpc

from dormouse import documents, home, printing
from dormouse.control import APPLY_TIMEOUT, TIMEOUT, control, naming

DELETE_WAIT = 120.0  # seconds


def apply(options: Namespace) -> None:
    """Nothing is applied unless all of it can be read. What the operator then refuses is named; what was applied before it stays so."""
    found = documents.read(options.filename)
    for sentence in found.others:
        printing.say(f"dormouse: {sentence}", sys.stderr)
    if not (found.faults or found.documents):
        found.faults.append(f"{', '.join(options.filename)}: no InferenceFunction found")
    if found.faults:
        raise InvalidArgument("\n".join([*found.faults, *(["nothing was applied"] if found.documents else [])]))
    with control(home.find(options.dir)) as stub:
        for document in found.documents:
            with naming(document.where):
                response = _applied(stub, control_pb2.ApplyRequest(manifest=document.text, refresh=options.refresh))
            printing.say(f"{response.function.namespace}/{response.function.name} {response.outcome}")
            if response.note:
                printing.say(f"dormouse: {response.function.namespace}/{response.function.name}: {response.note}", sys.stderr)


def _applied(stub: control_pb2_grpc.ControlStub, request: control_pb2.ApplyRequest) -> control_pb2.ApplyResponse:
    deadline = time.monotonic() + DELETE_WAIT
    while True:
        try:
            response: control_pb2.ApplyResponse = stub.Apply(request, timeout=APPLY_TIMEOUT)
            return response
        except grpc.RpcError as error:
            # The name of a function that is being deleted is free again in a moment: wait for it, as kubectl's users do by hand.
            if "is being deleted" not in str(error.details()) or time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def get(options: Namespace) -> None:
    namespace, name = _function(options.function, options.namespace) if options.function else (options.namespace, "")
    request = control_pb2.GetRequest(namespace=namespace, name=name, owners=options.owners)
    with control(home.find(options.dir)) as stub:
        if not options.watch:
            printing.say(printing.functions(stub.Get(request, timeout=TIMEOUT).functions, options.output))
            return
        for response in stub.Watch(request):
            printing.say(printing.functions(response.functions, options.output))


def scale(options: Namespace) -> None:
    namespace, name = _function(options.function)
    request = control_pb2.ScaleRequest(namespace=namespace, name=name, replicas=options.replicas)
    with control(home.find(options.dir)) as stub:
        function = stub.Scale(request, timeout=TIMEOUT).function
    told = "autoscaled" if function.autoscaled else f"fixed at {options.replicas}"
    printing.say(f"{namespace}/{name} {told}")


def delete(options: Namespace) -> None:
    namespace, name = _function(options.function)
    with control(home.find(options.dir)) as stub:
        uid = stub.Get(control_pb2.GetRequest(namespace=namespace, name=name), timeout=TIMEOUT).functions[0].uid
        stub.Delete(control_pb2.DeleteRequest(namespace=namespace, name=name), timeout=TIMEOUT)
        deadline = time.monotonic() + DELETE_WAIT
        while not options.no_wait:
            left = stub.Get(control_pb2.GetRequest(namespace=namespace), timeout=TIMEOUT).functions
            if all(f.uid != uid for f in left):
                break
            if time.monotonic() > deadline:
                raise DormouseError(f"{namespace}/{name} is still being deleted after {DELETE_WAIT:g} s", Code.DEADLINE_EXCEEDED)
            time.sleep(0.1)
    printing.say(f"{namespace}/{name} deleted")


def call(options: Namespace) -> None:
    from dormouse import inputs
    from dormouse.client import Client

    address = options.address or home.find(options.dir).read_run().gateway
    if (options.start or options.end) and options.sequence_id is None:
        raise InvalidArgument("--start and --end belong to a --sequence-id")
    with Client(address) as client:
        try:
            metadata = client.metadata(options.function, timeout=options.timeout)
            declared = {tensor.name: tensor.datatype for tensor in metadata.inputs}
            answer = client.infer(
                options.function,
                dict(inputs.parse(text, declared) for text in options.input),
                session=options.session,
                sequence_id=options.sequence_id,
                start=options.start,
                end=options.end,
                tenant=options.tenant,
                idempotency_key=options.key,
                timeout=options.timeout,
            )
        except DormouseError as error:
            if error.code is Code.UNAVAILABLE and "connect" in error.message.lower():
                raise DormouseError(f"no gateway answers at {address}; start one with: dormouse up DIR", error.code) from error
            raise DormouseError(f"{error.code.name}: {error.message}", error.code) from error
    for name, array in answer.outputs.items():
        printing.say(f"{plain(name)} {list(array.shape)} {array.tolist()}")
    if answer.step:
        printing.say(f"step {answer.step}")


def sessions(options: Namespace) -> None:
    namespace, name = _function(options.function)
    if options.cancel_alarm is not None:
        _cancel_alarm(options, namespace, name)
        return
    if options.delete or options.tenant is not None:
        _delete_sessions(options, namespace, name)
        return
    request = control_pb2.SessionsRequest(namespace=namespace, name=name, session=options.session, limit=min(options.limit or 500, 500))
    with control(home.find(options.dir)) as stub:
        response = stub.Sessions(request, timeout=TIMEOUT)
        if options.session:
            one = response.sessions[0]
            printing.say(printing.structured([one], options.output) if options.output else printing.session(one))
            return
        found = list(response.sessions)
        while response.next and (not options.limit or len(found) < options.limit):
            request.page = response.next
            response = stub.Sessions(request, timeout=TIMEOUT)
            found += response.sessions
    found = found[: options.limit or None]
    printing.say(printing.structured(found, options.output, single=False) if options.output else printing.sessions(found))


def usage(options: Namespace) -> None:
    namespace, name = _function(options.function) if options.function else ("", "")
    request = control_pb2.UsageRequest(namespace=namespace, name=name, by=options.by, since=options.since)
    rows: list[control_pb2.UsageRow] = []
    with control(home.find(options.dir)) as stub:
        for response in stub.Usage(request):
            rows += response.rows
    if options.csv:
        sys.stdout.write(printing.usage_csv(rows, options.by))
    elif options.output:
        printing.say(printing.structured(rows, options.output, single=False))
    else:
        printing.say(printing.usage(rows, options.by))
    if unknown := [row for row in rows if row.unknown]:
        raise Unavailable(f"{len(unknown)} functions: {plain(unknown[0].namespace)}/{plain(unknown[0].name)}: {plain(unknown[0].unknown)}")


def _delete_sessions(options: Namespace, namespace: str, name: str) -> None:
    if not options.delete:
        raise InvalidArgument("--tenant belongs to --delete")
    if bool(options.session) == (options.tenant is not None):
        raise InvalidArgument("--delete: a SESSION or --tenant is required, and not both")
    request = control_pb2.DeleteSessionsRequest(namespace=namespace, name=name)
    if options.session:
        request.session = options.session
    else:
        request.tenant = options.tenant
    with control(home.find(options.dir)) as stub:
        deleted = stub.DeleteSessions(request, timeout=DELETE_WAIT).deleted
    printing.say(f"{namespace}/{name} sessions deleted: {deleted}")


def _cancel_alarm(options: Namespace, namespace: str, name: str) -> None:
    if options.delete or not options.session:
        raise InvalidArgument("--cancel-alarm: a SESSION is required, and no --delete")
    request = control_pb2.CancelAlarmRequest(namespace=namespace, name=name, session=options.session, alarm=options.cancel_alarm)
    with control(home.find(options.dir)) as stub:
        stub.CancelAlarm(request, timeout=TIMEOUT)
    printing.say(f"{namespace}/{name} {options.session}: alarm {plain(options.cancel_alarm)} cancelled")


def _function(text: str, given: str = "") -> tuple[str, str]:
    """Namespace and name. `given`: the namespace that an option named."""
    namespace, slash, name = text.rpartition("/")
    if not name or (slash and not namespace) or "/" in namespace:
        raise InvalidArgument(f'function: "{text}" found, NAME or NAMESPACE/NAME is allowed')
    if namespace and given not in ("", namespace):
        raise InvalidArgument(f'function: "{text}" found, but --namespace is "{given}"')
    return namespace or given or "default", name
