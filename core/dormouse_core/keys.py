"""Where things lie in the store. The table of `docs/architecture.md`, as functions.

A function's own keys are under two prefixes, ``map/{F}/`` and ``data/{D}/``, where ``{F}`` is ``namespace/name/uid``: names are used again,
uids are not. ``{D}`` is ``namespace/name/store id``: the function's uid, or the uid of the first function whose sessions it adopted (rule
*retained*). Every key of the installation is under ``/dormouse/{installation}/``.
"""

from dataclasses import dataclass

from dormouse_proto import state_pb2

DIGITS = 9
"""Of a number in a key, at most: Python reads 4,300 digits and then raises, and shards are a few thousand."""
NAME = 253
"""Characters of a worker's name, at most: a pod's, with what follows it."""


def number(text: str) -> int | None:
    """The number that `text`, a part of a key, is as we write it; None: nobody of ours wrote this. A function's worker may write any bytes
    below its function's prefixes, digits of other scripts and a second spelling of a number among them."""
    ours = len(text) <= DIGITS and text.isascii() and text.isdigit() and (text == "0" or text[0] != "0")
    return int(text) if ours else None


def named(text: str) -> bool:
    """Whether `text`, a part of a key, may be a worker's name."""
    return 0 < len(text) <= NAME and text.isascii() and text.isprintable() and "/" not in text


@dataclass(frozen=True, slots=True)
class Function:
    """A function's identity: what keys and caches are made of."""

    namespace: str
    name: str
    uid: str
    store_id: str = ""
    """Under which its sessions lie; empty: its uid."""

    @property
    def path(self) -> str:
        return f"{self.namespace}/{self.name}/{self.uid}"

    @property
    def data_path(self) -> str:
        return f"{self.namespace}/{self.name}/{self.store_id or self.uid}"

    @property
    def label(self) -> str:
        """namespace/name: what people and metadata call it."""
        return f"{self.namespace}/{self.name}"


def function_of(entry: state_pb2.FunctionEntry) -> Function:
    """The identity that the registry's entry tells."""
    return Function(entry.namespace, entry.name, entry.uid, entry.store_id)


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one installation."""

    installation: str = "default"

    @property
    def root(self) -> str:
        return f"/dormouse/{self.installation}/"

    @property
    def leader(self) -> str:
        return f"{self.root}leader"

    @property
    def written(self) -> str:
        """The mark that every function has its entry (`dormouse_core.absences`)."""
        return f"{self.root}written"

    @property
    def functions(self) -> str:
        return f"{self.root}functions/"

    def function(self, namespace: str, name: str) -> str:
        return f"{self.functions}{namespace}/{name}"

    @property
    def retaineds(self) -> str:
        return f"{self.root}retained/"

    def retained(self, namespace: str, name: str) -> str:
        """Says that the sessions of a function that is gone were kept for the next one of its name."""
        return f"{self.retaineds}{namespace}/{name}"

    @property
    def gateways(self) -> str:
        return f"{self.root}gateways/"

    def gateway(self, agent: str) -> str:
        return f"{self.gateways}{agent}"

    @property
    def maps(self) -> str:
        return f"{self.root}map/"

    def map(self, f: Function) -> str:
        return f"{self.maps}{f.path}/"

    def workers(self, f: Function) -> str:
        return f"{self.map(f)}workers/"

    def worker(self, f: Function, worker: str) -> str:
        return f"{self.workers(f)}{worker}"

    def shards(self, f: Function) -> str:
        return f"{self.map(f)}shards/"

    def shard(self, f: Function, shard: int) -> str:
        return f"{self.shards(f)}{shard}"

    def moves(self, f: Function) -> str:
        return f"{self.map(f)}moves/"

    def move(self, f: Function, shard: int) -> str:
        return f"{self.moves(f)}{shard}"

    @property
    def datas(self) -> str:
        return f"{self.root}data/"

    def data(self, f: Function) -> str:
        return f"{self.datas}{f.data_path}/"

    def states(self, f: Function, shard: int | None = None) -> str:
        """All records, or one shard's. A session's key part is percent-encoded, so a prefix never ends inside a name."""
        return f"{self.data(f)}state/" + ("" if shard is None else f"{shard}/")

    def state(self, f: Function, shard: int, session: str) -> str:
        return f"{self.states(f, shard)}{session}"

    def floors(self, f: Function) -> str:
        return f"{self.data(f)}floors/"

    def floor(self, f: Function, shard: int) -> str:
        return f"{self.floors(f)}{shard}"

    def usages(self, f: Function) -> str:
        """Totals of what was used (`dormouse_core.usages`), all of them."""
        return f"{self.data(f)}usage/"

    def usage(self, f: Function, shard: int) -> str:
        """Of the sessions of `shard` whose records are removed."""
        return f"{self.usages(f)}s/{shard}"

    def usages_of_workers(self, f: Function) -> str:
        return f"{self.usages(f)}w/"

    def usage_of_worker(self, f: Function, worker: str) -> str:
        """What one worker counts beside the steps of sessions."""
        return f"{self.usages_of_workers(f)}{worker}"

    def usage_of_former(self, f: Function) -> str:
        """The same of all workers that are gone."""
        return f"{self.usages(f)}total"

    @property
    def usage_histories(self) -> str:
        return f"{self.root}usage-history/"

    def usage_history(self, f: Function, day: str = "") -> str:
        """Totals as they were at the beginning of a day (YYYY-MM-DD), or the prefix of all of them."""
        return f"{self.usage_histories}{f.data_path}/{day}"

    @property
    def deleted_usages(self) -> str:
        return f"{self.root}usage-of-deleted/"

    def deleted_usage(self, f: Function) -> str:
        """Of a function that is gone."""
        return f"{self.deleted_usages}{f.data_path}"

    def alarms(self, f: Function, shard: int | None = None) -> str:
        """Of sessions with alarms, in the whole function or in one shard: when the earliest is due."""
        return f"{self.data(f)}alarms/" + ("" if shard is None else f"{shard}/")

    def alarm(self, f: Function, shard: int, session: str) -> str:
        return f"{self.alarms(f, shard)}{session}"

    def alarm_of(self, f: Function, state: str) -> str:
        """The same of the session whose record's key is `state`."""
        return f"{self.alarms(f)}{state.removeprefix(self.states(f))}"

    def quarantines(self, f: Function) -> str:
        return f"{self.data(f)}quarantine/"

    def quarantined(self, f: Function, shard: int, part: str | None = None) -> str:
        """The prefix of broken copies: a shard's, or one session's or (percent-encoded) tenant's in it."""
        return f"{self.quarantines(f)}{shard}/" + ("" if part is None else f"{part}/")

    def quarantine(self, f: Function, shard: int, session: str, revision: int) -> str:
        return f"{self.quarantined(f, shard, session)}{revision}"
