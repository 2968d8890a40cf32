"""What the machine asks of its driver, and what its plans wait for."""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from dormouse_core.seams import Txn
from dormouse_core.sessions.boundary import Answer, States, Step
from dormouse_core.sessions.memory import Session, Shard

T = TypeVar("T")

# ------------------------------------------------------------------------------------------------------- what a plan waits for


@dataclass(frozen=True, slots=True)
class Get:
    """Several keys at one revision. Sent: (revision, the items that exist by key), or a StoreError is thrown."""

    keys: Sequence[str]


@dataclass(frozen=True, slots=True)
class GetAll:
    """Every key below a prefix. Sent: a Listing, or a StoreError is thrown."""

    prefix: str


@dataclass(frozen=True, slots=True)
class Transact:
    """One transaction. Sent: a TxnResult, or a StoreError is thrown. `timeout` in seconds."""

    txn: Txn
    timeout: float = 5.0


@dataclass(frozen=True, slots=True)
class Wait:
    """For so many seconds. Sent: None."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Quiet:
    """Until `Wake` of this shard: no step of it runs or commits, or its status has changed. Sent: None."""

    shard: Shard


Waited = Get | GetAll | Transact | Wait | Quiet
Plan = Generator[Waited, Any, T]

# -------------------------------------------------------------------------------------------------------------------- commands


@dataclass(slots=True)
class Run:
    """Run a step on `states`, and tell `Machine.ran` once what came of it. `deadline`: on the monotonic clock."""

    session: Session
    step: Step
    states: States
    number: int
    begins: bool
    deadline: float


@dataclass(slots=True)
class Tell:
    """Give a step's caller its answer."""

    step: Step
    answer: Answer


@dataclass(frozen=True, slots=True)
class Start:
    """Follow this plan beside the others, to its end."""

    plan: Plan[None]
    name: str


@dataclass(frozen=True, slots=True)
class Wake:
    """Whoever waits for this shard (`Quiet`) is to look again."""

    shard: Shard


@dataclass(frozen=True, slots=True)
class Soon:
    """Call `Machine.soon` once everything that happens together has happened: at the end of this turn of the loop."""


@dataclass(frozen=True, slots=True)
class Changed:
    """What is reported of shards has changed."""


@dataclass(frozen=True, slots=True)
class Acquired:
    """A shard is owned, newly or under a new fence: its records are to be counted."""


@dataclass(frozen=True, slots=True)
class Alarms:
    """When sessions' alarms are due has changed."""


@dataclass(frozen=True, slots=True)
class Say:
    """A line of the log."""

    text: str
    fields: dict[str, Any] = field(default_factory=dict)
    warning: bool = True


Command = Run | Tell | Start | Wake | Soon | Changed | Acquired | Alarms | Say


class Outbox(deque[Command]):
    """Commands in their order, and what waits for the end of the turn."""

    def __init__(self) -> None:
        super().__init__()
        self._later: list[Callable[[], None]] = []

    def soon(self, work: Callable[[], None]) -> None:
        """`work` is done at the end of this turn of the loop: once for all that comes together until then."""
        if not self._later:
            self.append(Soon())
        self._later.append(work)

    def turn_ended(self) -> None:
        later, self._later = self._later, []
        for work in later:
            work()
