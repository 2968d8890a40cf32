"""What callers are told, and whether it is true."""

from dormouse_testing.session_model.rules import START, Instance
from dormouse_testing.session_model.states import ABANDONED, LANDED, Ghost, Item, State, bag, put, with_ghost

Answers = list[tuple[str, State]]


class Violation(Exception):
    """A promise is broken. `promise`: which."""

    def __init__(self, promise: str, text: str) -> None:
        super().__init__(f"{promise}: {text}")
        self.promise = promise


def broken(instance: Instance, promise: str, text: str) -> None:
    if promise in instance.promises:
        raise Violation(promise, text)


def heard(instance: Instance, state: State, session: int, position: int) -> State:
    """The session's client takes an answer to that call, and makes its next one."""
    waits_for, _ = state.clients[session]
    if waits_for != position:
        return state
    network = state.network
    if position + 1 < len(instance.calls[session]):
        network = bag((*network, (session, position + 1)))
    return state._replace(clients=put(state.clients, session, (position + 1, 1)), network=network)


def _answers(instance: Instance, state: State, session: int, position: int, label: str) -> Answers:
    got = heard(instance, state, session, position)
    return [(label, state)] if got is state else [(label, got), (f"{label} (answer lost)", state)]


def acknowledge(instance: Instance, state: State, session: int, position: int, nonce: int, label: str) -> Answers:
    ghost = state.ghosts[session]
    applied = dict(ghost.applied)
    if position not in applied:
        broken(instance, "uncommitted", f"call {position} of session {session} is acknowledged and was never committed")
    elif applied[position] != nonce:
        broken(instance, "reply differs", f"call {position} is acknowledged with the reply of a run that did not commit")
    if any(p == position and n != nonce for p, n in ghost.acknowledged):
        broken(instance, "reply differs", f"call {position} got two replies")
    if (position, nonce) not in ghost.acknowledged:
        state = with_ghost(state, session, ghost._replace(acknowledged=tuple(sorted((*ghost.acknowledged, (position, nonce))))))
    return _answers(instance, state, session, position, label)


def absent(instance: Instance, state: State, session: int, position: int, label: str) -> Answers:
    """ "No such session"."""
    if position in dict(state.ghosts[session].applied):
        broken(instance, "reply differs", f'call {position} is committed and is answered "no such session"')
    record = state.records[session]
    if record is not None and record.live:
        broken(instance, "false absence", f'call {position} is answered "no such session", but it lives')
    return _answers(instance, state, session, position, label)


def unknown(instance: Instance, state: State, session: int, position: int, label: str) -> Answers:
    """ABORTED: whether it ran is not known."""
    waits_for, _ = state.clients[session]
    if position >= waits_for and position not in dict(state.ghosts[session].applied):
        broken(instance, "false refusal", f"call {position}, for which its caller waits and which did not run, is refused as too old")
    return _answers(instance, state, session, position, label)


def again(instance: Instance, state: State, item: Item) -> None:
    """dormouse-again: this run of the call is not and will not be committed."""
    if (item.position, item.nonce) in state.ghosts[item.session].applied:
        broken(instance, "false again", f"call {item.position} is committed, its worker says that it will not be")
    for txn in state.txns:
        if txn.kind == "commit" and txn.status == ABANDONED and item in txn.payload:
            broken(instance, "false again", f"call {item.position} may land still, its worker says that it will not be committed")
        if txn.status == LANDED and txn.kind == "commit" and item in txn.payload[0]:
            broken(instance, "false again", f"call {item.position} landed, its worker says that it will not be committed")


def check_applied(instance: Instance, ghost: Ghost, item: Item) -> None:
    """Before `item` takes effect."""
    s, position = item.session, item.position
    if position in dict(ghost.applied):
        broken(instance, "twice", f"call {position} of session {s} takes effect a second time")
    applied = dict(ghost.applied)
    missing = [p for p, _ in ghost.acknowledged if p not in applied and p != position]
    if missing:
        broken(instance, "lost", f"call {position} commits on a state without the acknowledged call {missing[0]}")
    if item.ghost_base != ghost.base:
        if ghost.base in ghost.acknowledged and ghost.base[0] != position:
            broken(instance, "lost", f"call {position} commits on {item.ghost_base} and wipes out the acknowledged {ghost.base}")
        broken(instance, "fork", f"call {position} of session {s} commits on {item.ghost_base}, the last committed is {ghost.base}")
    if instance.calls[s][position] == START and any(p > position for p, _ in ghost.acknowledged):
        broken(instance, "late start", f"start {position}, older than the acknowledged {ghost.acknowledged[-1]}, begins the session again")
