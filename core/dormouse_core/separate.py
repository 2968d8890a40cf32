"""Calls that were to run together and must not: what a worker finds while it serves, kept with the proof of its revision.

The experiment at a model's loading says `Independent` of the sizes that it tried. Other sizes are forms of their own
(`dormouse_worker.batches.forms`): the first two calls of one are compared, alone and together. A form that fails is told to the leader,
which writes it beside the experiment's result: the status says so, and no other worker joins calls of that form, one that wakes or one
that runs.

Forms belong to a result of the experiment, by its key: another file, manifest or runtime has other ones.
"""

from dormouse_proto import state_pb2

from dormouse_core import limits

REASON = "SomeAlone"
"""Of the condition, where calls of some forms run alone."""


def proved_alike(kept: state_pb2.Batching, found: state_pb2.Batching) -> bool:
    """Whether both are the same result of the experiment, whatever has become known of forms since."""
    return _bare(kept) == _bare(found)


def unknown(kept: state_pb2.Batching, found: state_pb2.Batching) -> list[state_pb2.Batching.Form]:
    """Forms of `found` that `kept` does not have."""
    if kept.key != found.key:
        return []
    known = {form.key for form in kept.alone}
    return [form for form in found.alone if form.key not in known]


def joined(kept: state_pb2.Batching, found: state_pb2.Batching) -> state_pb2.Batching:
    """`found` with the forms of both, at most `FORMS_KEPT`: those that were kept stay. Of those beyond, each worker finds out by itself."""
    result = state_pb2.Batching()
    result.CopyFrom(found)
    if kept.key != found.key:
        del result.alone[limits.FORMS_KEPT :]
        return result
    result.ClearField("alone")
    result.alone.extend([*kept.alone, *unknown(kept, found)][: limits.FORMS_KEPT])
    for form in result.alone:
        form.why = form.why[: limits.FORM_CHARACTERS]
    return result


def sentence(why: str) -> str:
    """Of one form, for a log and for the condition."""
    return f"Calls of some sizes run alone: {why}."


def message(batching: state_pb2.Batching) -> str:
    """The condition's, of all that is known."""
    if not batching.alone:
        return batching.message
    more = f" (and {len(batching.alone) - 1} more)" if len(batching.alone) > 1 else ""
    return f"{batching.message} {sentence(batching.alone[0].why + more)}"


def _bare(batching: state_pb2.Batching) -> state_pb2.Batching:
    bare = state_pb2.Batching()
    bare.CopyFrom(batching)
    bare.ClearField("alone")
    return bare
