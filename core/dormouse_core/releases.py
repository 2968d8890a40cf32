"""Which workers are spoken with: a function may name an image of an older release as its own (`spec.workers.image`).

A worker's entry says by a number what it speaks. The number rises with a release whose workers do something without which others would
lose or double what is a caller's; `LEAST` rises, releases later, when nothing is done any more for those that do not. Whoever is below is
given no call and no shard, and its function's problem names the cure.
"""

from dormouse_proto import state_pb2

from dormouse_core.errors import Code

SPEAKS = 1
"""What a worker of this release says. 0: one from before it was said, from commit b18a8d8 on."""
LEAST = 0
"""What it takes to be spoken with."""
REASON = "WorkerTooOld"


def refusal(entry: state_pb2.WorkerEntry) -> str:
    """Why this worker is not spoken with; '': it is."""
    if entry.speaks >= LEAST:
        return ""
    return f"it is of an older release than this one speaks with (it speaks version {entry.speaks}, {LEAST} and above are understood)"


def problem(entry: state_pb2.WorkerEntry) -> state_pb2.Problem:
    """Of a function whose worker is refused."""
    text = f"worker {entry.instance} is not used: {refusal(entry)}; name a newer image in spec.workers.image, or none"
    return state_pb2.Problem(code=int(Code.FAILED_PRECONDITION), reason=REASON, message=text, revision=entry.revision)
