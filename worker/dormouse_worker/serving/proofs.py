"""Whether a worker may serve what it loaded: the function's entry says what its revision was proved with (`dormouse_core.editions`)."""

from collections.abc import Mapping

from dormouse_core import editions
from dormouse_core.errors import Unavailable
from dormouse_core.seams import Clock, Store, StoreError
from dormouse_core.workerfile import WorkerFile
from dormouse_kit import contents, ignoring
from dormouse_proto import state_pb2

from dormouse_worker.models.refusals import ContentChanged
from dormouse_worker.sessions.registration import RETRY_SECONDS, TRIES


async def check(file: WorkerFile, content: str, files: Mapping[str, str], store: Store, clock: Clock) -> None:
    """Before anybody can find this worker. `content`: the digest of what it loaded; `files`: of a folder, that of each file.

    ContentChanged: its revision was proved with something else. Unavailable: the store does not say. A function that is not registered, or
    is another by now, contradicts nothing.
    """
    key = file.keys.function(file.namespace, file.name)
    error: StoreError | None = None
    for attempt in range(TRIES):
        if attempt:
            await clock.sleep(RETRY_SECONDS)
        try:
            item = (await store.get([key]))[1].get(key)
            break
        except StoreError as failure:
            error = failure
    else:
        raise Unavailable(f"the store does not say what revision {file.revision} was proved with: {error}") from error
    if item is None:
        return
    entry = state_pb2.FunctionEntry.FromString(item.value)
    if entry.uid == file.uid and editions.differs(entry, file.revision, content, files):
        raise ContentChanged(_changed(file, content, files, editions.proof_of(entry, file.revision)))


def _changed(file: WorkerFile, found: str, files: Mapping[str, str], proof: state_pb2.Proof) -> str:
    where = file.spec.model.uri if file.spec.model is not None else ""
    changes = editions.changes(proof, files)
    which = f" ({contents.some(changes)})" if changes else ""
    return (
        f"spec.model.uri: {where} has the content {found[: contents.SHOWN]}{which}, but revision {file.revision[:8]} was proved with "
        f"{proof.content[: contents.SHOWN]}. To serve what is there now, make a new revision (`dormouse apply`; in a cluster, or of what "
        "lies elsewhere, `dormouse apply --refresh` or another value of the annotation dormouse.dev/refresh); or put back what was there. "
        f"What a handler itself writes, name in {ignoring.NAME} beside it"
    )
