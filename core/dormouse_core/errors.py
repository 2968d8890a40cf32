"""One error tree for everything that a caller or an operator can be told.

Every error carries its gRPC code, so that the code is chosen where the cause is known and mapped to the wire in one place. The text is for
the person who made the call: which field, what was found, what is allowed.
"""

import enum

from dormouse_core.plain import plain

LONGEST = 4_000
"""Bytes of an error's text as `grpc-message` has them, percent-encoded. A client may put RESOURCE_EXHAUSTED in place of a status whose
metadata take more than 8 KiB."""


class Code(enum.IntEnum):
    """gRPC's status codes (https://grpc.io/docs/guides/status-codes/), without importing grpc here."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class Again(enum.StrEnum):
    """Why a worker refused a call that it has not run and will never commit: the value of the header ``dormouse-again`` (rule *again*)."""

    NOT_MINE = "not-mine"
    BUSY = "busy"
    DROPPED = "dropped"
    DRAINING = "draining"
    CLOCK = "clock"
    COUNTING = "counting"  # what decides whether the session may begin is not known yet
    CLEARED = "cleared"  # nothing runs here but what comes next: the call for which that was asked (`dormouse_core.clearing`)
    UNCLEAR = "unclear"  # what runs did not end in time, or the worker is not kept clear for this call any more
    UNTRIED = "untried"  # the worker has not been closed for this one: it rested, or was closed for another


class DormouseError(Exception):
    """The root. `message` is meant for the caller, and such that it can be told; `code` is what the wire says."""

    code: Code = Code.UNKNOWN

    def __init__(self, message: str, code: Code | None = None) -> None:
        self.message = tellable(message)
        super().__init__(self.message)
        if code is not None:
            self.code = code


class InvalidArgument(DormouseError):
    """The request is wrong, whatever the state of the system. Nothing was run, nothing changed."""

    code = Code.INVALID_ARGUMENT


class Decoupled(InvalidArgument):
    """A unary call of a function that streams its responses. Whoever made it for a stream repeats it as `ModelStreamInfer` (rule
    *streamed-parts*)."""


class NotFound(DormouseError):
    """No such function, or no such session where one is asked for by name."""

    code = Code.NOT_FOUND


class ResourceExhausted(DormouseError):
    """A limit was reached; the message names it."""

    code = Code.RESOURCE_EXHAUSTED


class FailedPrecondition(DormouseError):
    """The function's model is invalid, or a record is of a version that this revision does not read."""

    code = Code.FAILED_PRECONDITION


class Aborted(DormouseError):
    """The outcome of an earlier copy of this call is not known, or a newer step won."""

    code = Code.ABORTED


class Unavailable(DormouseError):
    """Cannot be served now. With `again`: not run and never committed, so that whoever sent it may send it again under the same key."""

    code = Code.UNAVAILABLE

    def __init__(self, message: str, again: Again | None = None) -> None:
        super().__init__(message)
        self.again = again


class DeadlineExceeded(DormouseError):
    """The step limit, the hold limit or the caller's own deadline passed."""

    code = Code.DEADLINE_EXCEEDED


class Internal(DormouseError):
    """The handler raised, or a part of Dormouse broke its own rule."""

    code = Code.INTERNAL


class DataLoss(DormouseError):
    """A record does not verify. It is never removed by itself."""

    code = Code.DATA_LOSS


def tellable(text: str) -> str:
    """`text` as every client can be told it: a terminal acts on nothing in it but the ends of its lines, and what is too long is cut."""
    text = plain(text, keep="\n")
    if 12 * len(text) <= LONGEST:  # four bytes a character, three a byte
        return text
    size = cut = 0
    for at, character in enumerate(text, 1):
        size += 1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode())
        if size <= LONGEST - 3:
            cut = at
        elif size > LONGEST:
            return text[:cut] + "..."
    return text


def text_of(error: BaseException) -> str:
    """An exception of code that is not ours, in words, whatever its own methods do."""
    name = type.__dict__["__name__"].__get__(type(error))  # whatever its metaclass does
    try:
        return plain(f"{name}: {error}", keep="\n")
    except BaseException:  # SystemExit too: here it would end whoever tells of the error
        return f"{name}, which has no text: its __str__ raises"
