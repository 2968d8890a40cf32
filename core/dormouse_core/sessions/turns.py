"""The steps of each session, one at a time, in the order of their keys (rule *one-at-a-time*).

A step's turn comes when the step before it has its outcome. Then `steps.admit` decides on the record as it is known here; a step that is
to run goes to the runner at once, so many sessions' steps run together; one that ran joins a group, and its caller hears nothing
before the commit is known (rule *commit-first*). A session that is in memory costs no read.
"""

from collections.abc import Callable, Sequence

import msgspec

from dormouse_core import alarms, lifetimes, records, steps, transactions, usages
from dormouse_core.clocks import TimeReading
from dormouse_core.errors import (
    Again,
    DataLoss,
    DeadlineExceeded,
    DormouseError,
    FailedPrecondition,
    Internal,
    ResourceExhausted,
    Unavailable,
    text_of,
)
from dormouse_core.keys import Function, Keys
from dormouse_core.limits import ALARM_BLOCKED_SECONDS, RECORD_BYTES, SESSION_OVERHEAD_BYTES
from dormouse_core.seams import Clock, Item, Put, StoreError, Txn
from dormouse_core.sessions import arrays
from dormouse_core.sessions.boundary import Answer, Failed, Outcome, Ran, SessionSettings, StateInfo, States, Step
from dormouse_core.sessions.census import Census
from dormouse_core.sessions.commands import Alarms, Outbox, Plan, Run, Say, Start, Tell, Transact, Wake
from dormouse_core.sessions.groups import Groups, Pending
from dormouse_core.sessions.loading import Loader
from dormouse_core.sessions.memory import LargeReplies, Phase, Session, Shard, glance_of, is_large
from dormouse_core.sessions.ownership import Status
from dormouse_core.sessions.ringing import Book


class WriteIds:
    """New for every attempt to write, in every process: a worker's name is new for every process."""

    def __init__(self, worker: str) -> None:
        self._prefix = worker.encode() + b"/"
        self._count = 0

    def next(self) -> bytes:
        self._count += 1
        return self._prefix + self._count.to_bytes(6, "big")


EntryRead = Callable[[Shard, Item | None, int], None]


class Turns:
    """`entry_read` is told of each linearizable read of a shard's entry that is made by the way: (shard, item, revision)."""

    def __init__(
        self,
        function: Function,
        settings: SessionSettings,
        states: Sequence[StateInfo],
        clock: Clock,
        time: TimeReading,
        census: Census,
        shards: Sequence[Shard],
        entry_read: EntryRead,
        out: Outbox,
        *,
        worker: str,
        keys: Keys,
    ) -> None:
        self.function = function
        self.census = census
        self.entry_read = entry_read
        self.groups = Groups(clock, self, out)
        self.loader = Loader(self, out)
        self.book = Book()
        self.sessions = 0
        self.state_bytes = 0
        self.tensor_bytes = 0  # of sessions that keep their tensors as they were read, beside their states
        self.stored_bytes = 0  # of the records of sessions in memory
        self.acknowledged = 0
        self.kept_replies = 0
        self.open = 0  # submitted and neither answered nor, being cancelled, passed over
        self._settings = settings
        self._versions = settings.accepts | {settings.state_version}
        self._ttl_us = int(settings.ttl * 1e6)
        self._infos = states
        self._initial: States = {info.input: info.initial for info in states}
        self._clock = clock
        self._time = time
        self._keys = keys
        self._shards = shards
        self._out = out
        self._write_ids = WriteIds(worker)
        self._large = LargeReplies()
        self._flushing = False
        self._shrinking = False

    # -------------------------------------------------------------------------------------------------------------- a step's turn

    def offer(self, shard: Shard, step: Step) -> None:
        """A step of a shard that is owned now."""
        session = shard.sessions.get(step.session)
        if session is None:
            session = Session(step.session, self._keys.state(self.function, shard.number, step.session), shard)
            shard.sessions[step.session] = session
            self.sessions += 1
            session.queue.append(step)
            self._load(session, step)
        elif not session.queue and self._may_turn(session):
            self._turn(session, step)
        else:
            _insert(session.queue, step)

    def pump(self, session: Session) -> None:
        """Gives the next steps of `session` their turns, until one runs, or is to be read for, or none is left."""
        while session.queue and self._may_turn(session):
            self._turn(session, session.queue.pop(0))

    def _may_turn(self, session: Session) -> bool:
        shard = session.shard
        free = session.phase is Phase.IDLE and not session.dropped and shard.own.status is Status.OWNED
        return free and not (shard.removing and session.base == 0)

    def created(self, shard: Shard) -> None:
        """A removal has ended: sessions that are to be created go on, on the floor as it is now."""
        for session in [s for s in shard.sessions.values() if s.base == 0]:
            if session.phase is not Phase.LOADING and session.floor_mod < shard.floor_mod:
                session.floor_mod, session.floor_us = shard.floor_mod, shard.floor_us
            self.pump(session)

    def _turn(self, session: Session, step: Step) -> None:
        if step.cancelled:
            self.open -= 1
            return
        if step.rings:
            self._ring(session, step)
            return
        now = self._clock.monotonic()
        body = session.body
        now_us = self._time.now_us()
        decision = steps.admit(body, session.trouble, session.floor_us, step, now_us, self._versions, self.function.name)
        if step.deadline <= now and not isinstance(decision, steps.Repeat):
            # Of an earlier copy of the call nothing is said but what the record keeps.
            text = "the deadline passed before the step's turn came; this copy of the call was not run"
            self.answer(step, Answer(None, 0, DeadlineExceeded(text)))
            return
        session.used = now
        if isinstance(decision, steps.Run):
            begins = decision.begins
            if begins and session.trouble is None and not steps.is_live(body, now_us):
                refused = self.census.refusal(session, now_us, self._time.best_us())
            else:
                refused = None if step.end else self.census.stop()
            if refused is not None:
                self.answer(step, Answer(None, 0, refused))
                if body is None and not session.queue:
                    self.drop(session)
                return
            states = self._initial if begins else session.states
            number = 1 if begins or body is None else body.step + 1
            session.phase = Phase.RUNNING
            session.shard.running[session] = now
            self._out.append(Run(session, step, states, number, begins, min(step.deadline, now + self._settings.step_limit)))
        elif isinstance(decision, steps.Repeat):
            self._repeat(step, decision.kept)
        elif decision.confirm and session.confirmed is not step:
            session.queue.insert(0, step)
            self._load(session, step)
        else:
            self.answer(step, Answer(None, 0, decision.error))
            if body is None and not session.queue:
                self.drop(session)  # names that are guessed take no memory

    def _ring(self, session: Session, step: Step) -> None:
        """The turn of whichever alarm of the session is due."""
        now_us, body = self._time.now_us(), session.body
        error: DormouseError | None = Unavailable("this worker's clock is not known to be right") if now_us is None else self.census.stop()
        alarm = None
        if now_us is not None and error is None:
            try:
                alarm = alarms.admit(body, session.trouble, now_us, self._versions)
            except DormouseError as trouble:
                self._blocked(session, now_us, trouble)
                error = trouble
        if error is not None or alarm is None or now_us is None:
            if error is None:
                due_us = alarms.earliest(body.alarms) if body is not None else None
                if due_us != self.book.of(session.shard.number, session.key):
                    self._remind(session, due_us)
                self.book.changed(session.shard.number, session.key, due_us)
            self.answer(step, Answer(None, 0, error))
            if body is None and session.trouble is None and not session.queue:
                self.drop(session)
            return
        assert body is not None
        step.alarm, step.key = alarm, alarms.key_of(alarm)
        session.used = self._clock.monotonic()
        self._note(session, step, alarms.begun(body, alarm, now_us, self._ttl_us), begins=True)

    def _goes_on(self, session: Session, step: Step) -> bool:
        """The step of an alarm runs, once its try is counted. Not where its shard is to be handed over: its next owner tries again."""
        body, shard = session.body, session.shard
        if step.alarm is None or body is None or session.dropped or shard.own.status is not Status.OWNED:
            return False
        step.alarm = next(alarm for alarm in body.alarms if alarm.id == step.alarm.id)
        step.key = alarms.key_of(step.alarm)
        now = self._clock.monotonic()
        session.phase = Phase.RUNNING
        shard.running[session] = now
        # No deadline: nobody waits for it, and a try that waited for callers' steps and never began would count as one that failed.
        self._out.append(Run(session, step, session.states, body.step + 1, False, step.deadline))
        return True

    def _blocked(self, session: Session, now_us: int, error: DormouseError) -> None:
        """Nobody can do more about its alarms here: looked at again later, and not before by whoever would wake the function for it."""
        fields = {"session": session.key, "error": error.message}
        self._out.append(Say("a session's alarms cannot be run by this worker; looked at again later", fields))
        self._remind(session, now_us + int(ALARM_BLOCKED_SECONDS * 1e6))

    def _remind(self, session: Session, due_us: int | None) -> None:
        """Puts right when the session's alarms are looked at next, where that is not what its record says. An attempt: whoever finds it
        wrong again puts it right again."""
        shard = session.shard
        key = self._keys.alarm(self.function, shard.number, session.key)
        txn = transactions.remind((shard.entry_key, shard.own.fence), (session.state_key, session.base), transactions.due(key, due_us))
        self._out.append(Start(self._reminded(txn), "alarm"))

    def _reminded(self, txn: Txn) -> Plan[None]:
        try:
            yield Transact(txn)
        except StoreError as error:
            self._out.append(Say("when an alarm is due could not be put right", {"error": str(error)}))

    def _note(self, session: Session, step: Step, body: records.Body, *, begins: bool = False) -> None:
        """Writes down what is to be known of an alarm, beside the state that the record has, under that state's version: no step of this
        revision has succeeded. `begins`: its step runs then."""
        session.phase = Phase.RUNNING
        session.shard.running[session] = self._clock.monotonic()
        write_id = self._write_ids.next()
        try:
            assert step.alarm is not None
            body = msgspec.structs.replace(body, usage=self._settled(session))  # the record has another size from now on
            tensors = arrays.encode(self._infos, session.states) if session.tensors is None else session.tensors
            data = records.encode(body, tensors, write_id)
            if len(data) + alarms.room(body.alarms) > RECORD_BYTES:
                body = alarms.briefly(body, step.alarm)
                data = records.encode(body, tensors, write_id)
            if len(data) > RECORD_BYTES:  # nobody kept room for it: what keeps this worker from running it is the record
                raise FailedPrecondition(f"the session's record would take {len(data)} bytes, at most {RECORD_BYTES} are allowed")
        except DormouseError as error:
            if begins:
                self._blocked(session, self._time.best_us(), error)
            self._not_committed(session, step, error)
            return
        pending = Pending(session, step, body, session.states, data, write_id, b"")
        pending.notes = True
        pending.begins = begins
        self._commit(pending)

    def _commit(self, pending: Pending) -> None:
        session = pending.session
        due_us = alarms.earliest(pending.body.alarms)
        before = alarms.earliest(session.body.alarms) if session.body is not None else None
        if due_us != before or session.trouble is not None:
            pending.alarm = transactions.due(self._keys.alarm(self.function, session.shard.number, session.key), due_us)
        self.groups.add(pending)
        if not self._flushing:
            self._flushing = True
            self._out.soon(self._flush)

    def _repeat(self, step: Step, kept: records.Kept) -> None:
        self.answer(step, self._kept(kept))

    def _kept(self, kept: records.Kept) -> Answer:
        self.kept_replies += 1
        reply = kept.reply if kept.reply is not None else self._large.get(kept.write_id)
        if reply is None:
            return Answer(None, kept.step, steps.gone(kept), kept=True)
        return Answer(reply, kept.step, kept=True)

    def answer(self, step: Step, answer: Answer) -> None:
        self.open -= 1
        self._out.append(Tell(step, answer))

    # ----------------------------------------------------------------------------------------------------------- after it ran

    def ran(self, run: Run, outcome: Outcome) -> None:
        session, step, begins = run.session, run.step, run.begins
        if isinstance(outcome, Failed):
            if step.alarm is not None and session.body is not None and not session.dropped:
                self._alarm_failed(session, step, outcome.error)
            else:
                self._not_committed(session, step, outcome.error)
            return
        try:
            now_us = self._time.best_us()
            write_id = self._write_ids.next()
            next_body = self._next(session, step, begins, outcome, now_us, write_id)
            states: States = {} if step.end else outcome.states
            tensors = () if step.end else arrays.encode(self._infos, states)
            data = records.encode(next_body, tensors, write_id)
            most = RECORD_BYTES - alarms.room(next_body.alarms)
            if len(data) > most:
                kept = "" if most == RECORD_BYTES else f", with {RECORD_BYTES - most} kept free for its alarms"
                raise ResourceExhausted(f"the session's record would take {len(data)} bytes, at most {most} are allowed{kept}")
        except DormouseError as error:
            if step.alarm is not None and session.body is not None:
                self._alarm_failed(session, step, error)
            else:
                self._not_committed(session, step, error)
            return
        except Exception as error:  # else the session would run for ever
            self._out.append(Say("a step's outcome could not be written down", {"error": repr(error)}))
            self._not_committed(session, step, Internal(text_of(error)))
            return
        pending = Pending(session, step, next_body, states, data, write_id, outcome.reply)
        if session.broken:
            key = self._keys.quarantine(self.function, session.shard.number, session.key, session.base)
            pending.quarantine = Put(key, session.broken)
        self._commit(pending)

    def _next(self, session: Session, step: Step, begins: bool, outcome: Ran, now_us: int, write_id: bytes) -> records.Body:
        """The record's next body. ResourceExhausted: it would have too many alarms."""
        body, version = session.body, self._settings.state_version
        usage = self._usage(session, step, outcome, now_us)
        if step.alarm is not None:
            assert body is not None
            found = alarms.stepped(body, now_us, self._ttl_us, version, usage)
        else:
            before = body, session.trouble, session.floor_us
            found = steps.advance(*before, step, begins, outcome.reply, now_us, self._ttl_us, version, write_id, usage)
        if not outcome.alarms and (body is None or not body.alarms):
            return found
        left = alarms.after(body, begins=begins, end=step.end, rung=step.alarm, changes=outcome.alarms, now_us=now_us, write_id=write_id)
        return alarms.onto(found, left)

    def _alarm_failed(self, session: Session, step: Step, error: DormouseError) -> None:
        alarm, body = step.alarm, session.body
        assert alarm is not None
        assert body is not None
        noted = alarms.failed(body, alarm, f"{error.code.name}: {error.message}", self._time.best_us(), self._ttl_us)
        text = "an alarm's step failed for the last time; the alarm is given up" if alarm.failed else "an alarm's step failed"
        fields = {"session": session.key, "alarm": alarm.name, "tries": alarm.tries, "error": error.message}
        self._out.append(Say(text, fields))
        self._note(session, step, noted)

    def _settled(self, session: Session) -> usages.Usage | None:
        """What the session has used up to now, without a step."""
        body = session.body
        if body is None or body.usage is None:
            return None
        return usages.settled(body.usage, body.expires_us, session.stored, self._time.best_us(), read=session.read)

    def _usage(self, session: Session, step: Step, ran: Ran, now_us: int) -> usages.Usage:
        """What the session has used once this step is committed: in the same record, so that it counts once whoever sends it again."""
        body = session.body
        before, until = (None, 0) if body is None else (body.usage, 0 if body.tombstone else body.expires_us)
        counts = {"busy_us": ran.busy_us, "bytes_in": step.bytes_in, "bytes_out": len(ran.reply)}
        return usages.stepped(before, until, session.stored, now_us, **counts, read=session.read)

    def _flush(self) -> None:
        """Once for all the steps that ended in one turn of the loop: they go in one transaction."""
        self._flushing = False
        self.groups.flush()

    def _over(self, session: Session) -> None:
        """A step of `session` neither runs nor commits any more."""
        shard = session.shard
        shard.running.pop(session, None)
        if shard.parked and not shard.running:
            self._out.append(Wake(shard))
        self.census.settled(session)

    def _not_committed(self, session: Session, step: Step, error: DormouseError) -> None:
        self._over(session)
        session.phase = Phase.IDLE
        self.answer(step, Answer(None, 0, error))
        self.pump(session)

    def committed(self, pending: Pending, revision: int) -> None:
        session = pending.session
        body = pending.body
        self._over(session)
        if not session.dropped:
            self.census.changed(session.shard, revision, glance_of(session), records.glance_of(body, len(pending.data)))
            session.base = revision
            session.body = body
            session.states = pending.states
            session.tensors = session.tensors if pending.notes else None
            session.read = False
            session.trouble = None
            session.broken = b""
            self._account(session, len(pending.data))
            if is_large(pending.reply):
                self._large.add(session.shard, pending.write_id, pending.reply)
        session.phase = Phase.IDLE
        self.acknowledged += not pending.notes
        if pending.alarm is not None or pending.step.rings:
            self.book.changed(session.shard.number, session.key, alarms.earliest(body.alarms))
            self._out.append(Alarms())
        if pending.begins and self._goes_on(session, pending.step):
            return
        self.answer(pending.step, Answer(pending.reply, body.step))
        self.pump(session)

    def landed(self, pending: Pending, kept: records.Kept) -> None:
        mine = kept.write_id == pending.write_id  # only of a reply that was too large to keep
        self._ended(pending, Answer(pending.reply, kept.step) if mine else self._kept(kept), True)

    def refused(self, pending: Pending, error: DormouseError, drop: bool) -> None:
        self._ended(pending, Answer(None, 0, error), drop)

    def _ended(self, pending: Pending, answer: Answer, drop: bool) -> None:
        session = pending.session
        self._over(session)
        session.phase = Phase.IDLE
        if drop:
            self.census.doubt(session.shard)
            if pending.alarm is not None:  # it may have landed, or land yet
                self.book.changed(session.shard.number, session.key, self._time.best_us())
                self._out.append(Alarms())
        waiting = self.drop(session) if drop else []
        self.answer(pending.step, answer)
        for step in waiting:
            # They have not begun; they go on with what the store has.
            self._again(session.shard, step)
        self.pump(session)

    def _again(self, shard: Shard, step: Step) -> None:
        if shard.own.status is Status.OWNED:
            self.offer(shard, step)
        else:
            shard.waiting.append(step)

    # ------------------------------------------------------------------------------------------------------------------ memory

    def _load(self, session: Session, step: Step) -> None:
        session.phase = Phase.LOADING
        session.confirmed = step
        self.loader.want(session)

    def loaded(self, session: Session, record: Item | None, floor: Item | None) -> None:
        session.base = record.mod_revision if record else 0
        session.read = True
        shard = session.shard
        if floor is not None and floor.mod_revision > shard.floor_mod:
            # Once for each floor: one that cannot be read counts as high as it can have been when it was met first, not for ever more.
            shard.floor_mod, shard.floor_us = floor.mod_revision, lifetimes.floor_us(floor, self._time.best_us())
        session.floor_mod, session.floor_us = shard.floor_mod, shard.floor_us
        session.body = session.trouble = None
        session.broken = b""
        session.states = {}
        session.tensors = None
        if record is not None:
            try:
                read = records.decode(record.value)
                session.body = read.body  # its keys count, also where its tensors cannot be read
                if not read.body.tombstone and read.body.state_version in self._versions:
                    session.states = arrays.decode(self._infos, read.tensors)
                    own = read.body.state_version == self._settings.state_version and not arrays.unlike(self._infos, read.tensors)
                    session.tensors = None if own or not read.body.alarms else read.tensors
            except (DataLoss, FailedPrecondition) as error:
                session.trouble = error
                if isinstance(error, DataLoss):
                    session.broken = record.value
                self._out.append(Say("a record cannot be read", {"session": session.key, "error": error.message}))
        if session.trouble is None:
            self._knows(session)
        self._account(session, len(record.value) if record else 0)
        session.phase = Phase.IDLE
        self.pump(session)

    def _knows(self, session: Session) -> None:
        """When its alarms are due, by the record as it was read: a commit may have landed of which this worker was not told."""
        due_us = alarms.earliest(session.body.alarms) if session.body is not None else None
        shard = session.shard.number
        if due_us != self.book.of(shard, session.key) and not any(step.rings for step in session.queue):
            self.book.changed(shard, session.key, due_us)
            self._out.append(Alarms())

    def load_failed(self, session: Session, error: StoreError) -> None:
        text = f"the session cannot be read: {error}"
        for step in self.drop(session):
            self.refuse(step, Again.DROPPED, text)

    def _account(self, session: Session, stored: int) -> None:
        size = arrays.bytes_of(session.states)
        again = 0 if session.tensors is None else sum(tensor.ByteSize() for tensor in session.tensors)
        self.state_bytes += size - session.state_bytes
        self.tensor_bytes += again - session.tensor_bytes
        self.stored_bytes += stored - session.stored
        session.state_bytes, session.tensor_bytes, session.stored = size, again, stored
        if self.memory_bytes > self._settings.memory_bytes > 0 and not self._shrinking:
            self._shrinking = True
            self._out.soon(self._shrink)

    @property
    def memory_bytes(self) -> int:
        """What sessions take of memory: states, kept replies (each twice: as read, and as the next record has it), and the rest."""
        states = self.state_bytes + self.tensor_bytes
        return self.sessions * SESSION_OVERHEAD_BYTES + states + 2 * max(0, self.stored_bytes - self.state_bytes)

    def _shrink(self) -> None:
        """The longest idle leave memory until a tenth of the bound is free. The store has them."""
        self._shrinking = False
        idle = [s for shard in self._shards for s in shard.sessions.values() if s.phase is Phase.IDLE and not s.queue]
        idle.sort(key=lambda session: session.used)
        enough = self._settings.memory_bytes * 9 // 10
        for session in idle:
            if self.memory_bytes <= enough:
                return
            self.drop(session)

    def forget(self, session: Session) -> None:
        """Its record is another by now, or gone. A step that runs finds out by itself."""
        if session.phase is Phase.IDLE:
            for step in self.drop(session):
                self._again(session.shard, step)

    def drop(self, session: Session) -> list[Step]:
        """Takes a session out of memory; returns its steps that have not begun."""
        if session.dropped:
            return []
        session.dropped = True
        session.shard.sessions.pop(session.key, None)
        self.sessions -= 1
        self.state_bytes -= session.state_bytes
        self.tensor_bytes -= session.tensor_bytes
        self.stored_bytes -= session.stored
        self.census.settled(session)
        waiting, session.queue = session.queue, []
        return waiting

    def empty(self, shard: Shard) -> None:
        """The fence has changed: what is in memory may not be what the store has. Steps that have not begun wait for what comes."""
        for session in list(shard.sessions.values()):
            shard.waiting += self.drop(session)
        self._large.forget(shard)
        shard.running.clear()
        if shard.parked:
            self._out.append(Wake(shard))

    def evict(self, shard: Shard, before: float) -> None:
        """Sessions that were not used since then, on the monotonic clock, leave memory; the store has them."""
        idle = [s for s in shard.sessions.values() if s.used < before and s.phase is Phase.IDLE and not s.queue]
        for session in idle:
            self.drop(session)

    def refuse(self, step: Step, again: Again, text: str) -> None:
        if step.cancelled:
            self.open -= 1
        else:
            self.answer(step, Answer(None, 0, Unavailable(text, again)))


def _insert(queue: list[Step], step: Step) -> None:
    """By the gateways' time of the calls. Calls of one session that are in flight together have no order of their own, but connections
    deliver them out of the order in which they were keyed; one that fell behind eight newer ones would meet the horizon and be refused
    though nothing was lost."""
    place = len(queue)
    while place and queue[place - 1].key.arrived_us > step.key.arrived_us:
        place -= 1
    queue.insert(place, step)
