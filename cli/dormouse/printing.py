"""What the commands print."""

import csv
import io
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TextIO

import yaml
from dormouse_core import separate
from dormouse_core.plain import plain
from dormouse_proto import control_pb2
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message


def say(text: str, stream: TextIO | None = None) -> None:
    """Prints, and nothing in it acts on the terminal. `stream`: standard output unless told otherwise."""
    print(plain(text, keep="\n"), file=stream or sys.stdout, flush=True)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A row is a line, whatever is in its cells."""
    lines = [list(head), *([plain(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def functions(found: Sequence[control_pb2.FunctionStatus], form: str) -> str:
    """`form`: "", wide, yaml or json."""
    if form in ("yaml", "json"):
        return structured(found, form)
    if not found:
        return "no functions"
    head = ["NAMESPACE", "NAME", "PHASE", "READY", "WORKERS", "SESSIONS", "HIBERNATED", "ASLEEP"]
    rows = [
        [
            *(f.namespace, f.name, f.phase, _ready(f), f"{f.ready_replicas}/{f.replicas}", str(f.sessions)),
            *(_size(f.hibernated_bytes) if f.sessions_known else "-", _since(f.asleep_since_us)),
        ]
        for f in found
    ]
    if form == "wide":
        head += ["REVISION", "WANTED", "SCALING", "WHY"]
        for row, f in zip(rows, found, strict=True):
            wanted = f.wanted_revision if f.wanted_revision != f.revision else "-"
            row += [f.revision or "-", wanted, "auto" if f.autoscaled else "fixed", f.reason]
    text = table(head, rows)
    # Also of a function that is served: by an older revision, while the one that was applied does not load.
    troubles = [_sentence(f"{f.namespace}/{f.name}: {c.type}: {c.message}") for f in found for c in f.conditions if _told(c)]
    return "\n".join([text, *troubles])


def _ready(function: control_pb2.FunctionStatus) -> str:
    """Whether what was applied is ready."""
    return next((c.status for c in function.conditions if c.type == "Ready"), "-")


def _sentence(text: str) -> str:
    """Its further lines are set in, so that none looks like one of another function's."""
    return text.replace("\n", "\n  ")


def _told(condition: control_pb2.Condition) -> bool:
    """What a person should read without being asked for it. A model that is not made for batches is no news."""
    if condition.type == "Batching":
        return condition.reason in ("Contradicted", "Dependent", "NotShown", separate.REASON)
    return (condition.type, condition.status) in (("ModelReady", "False"), ("OutOfMemory", "True"))


def structured(found: Sequence[Message], form: str, single: bool = True) -> str:
    """`form`: yaml or json. A list; where there is one and `single` is set, that one."""
    data: Any = [MessageToDict(f, always_print_fields_with_no_presence=True) for f in found]
    data = data[0] if single and len(data) == 1 else data
    return json.dumps(data, indent=2) if form == "json" else yaml.safe_dump(data, sort_keys=False).rstrip()


def sessions(found: Sequence[control_pb2.SessionInfo]) -> str:
    if not found:
        return "no sessions"
    head = ["SESSION", "SHARD", "STEP", "BYTES", "EXPIRES", "ALARM", "STATE", "OWNER"]
    rows = ([s.session, str(s.shard), str(s.step), str(s.bytes), _at(s.expires_us), _alarm(s), _state(s), s.owner or "-"] for s in found)
    return table(head, rows)


def session(s: control_pb2.SessionInfo) -> str:
    lines = [sessions([s]), f"state version {s.state_version}"]
    lines += [f"  {plain(t.name)}: {t.datatype} {list(t.shape)}" for t in s.tensors]
    lines += [f"alarm {plain(alarm.name)}: {_due(alarm)}" for alarm in s.alarms]
    return "\n".join(lines)


_USED: dict[str, Callable[[control_pb2.UsageRow], object]] = {
    "steps": lambda row: row.usage.steps,
    "calls": lambda row: row.usage.calls,
    "failed": lambda row: row.usage.failed,
    "refused": lambda row: row.usage.refused,
    "repeated": lambda row: row.usage.repeated,
    "busy_seconds": lambda row: _seconds(row.usage.busy_us),
    "bytes_in": lambda row: row.usage.bytes_in,
    "bytes_out": lambda row: row.usage.bytes_out,
    "live_byte_seconds": lambda row: row.usage.live_byte_seconds,
    "hibernated_byte_seconds": lambda row: row.usage.hibernated_byte_seconds,
    "unsettled_byte_seconds": lambda row: row.unsettled_byte_seconds,
    "worker_seconds": lambda row: _seconds(row.usage.worker_us),
}
_OF_SESSIONS = tuple(name for name in _USED if name in ("steps", "busy_seconds", "bytes_in", "bytes_out") or "byte_seconds" in name)
_FORMULA = "=+-@\uff1d\uff0b\uff0d\uff20'"
"""So a formula begins, in some spreadsheets also with the wide forms. The apostrophe, so that no two names become one cell."""


def _seconds(time_us: int) -> str:
    """Whole: what is billed is not rounded here."""
    return f"{time_us // 1_000_000}.{time_us % 1_000_000:06}"


def usage(rows: Sequence[control_pb2.UsageRow], by: str) -> str:
    if not rows:
        return "no usage"
    head, cells = _usage_cells(rows, by)
    return table([name.upper().replace("_", " ") for name in head], cells)


def usage_csv(rows: Sequence[control_pb2.UsageRow], by: str) -> str:
    """RFC 4180. No cell begins like a formula: a tenant's name is what a caller wrote, and a spreadsheet would run it."""
    out = io.StringIO()
    writer = csv.writer(out)
    head, cells = _usage_cells(rows, by)
    writer.writerow(head)
    for row in cells:
        writer.writerow([f"'{cell}" if _acts(cell) else cell for cell in row])
    return out.getvalue()


def _acts(cell: str) -> bool:
    """Also behind white space, which some drop."""
    first = cell[:1]
    return bool(first) and (first in _FORMULA or first.isspace() or not first.isprintable())


def _usage_cells(rows: Sequence[control_pb2.UsageRow], by: str) -> tuple[list[str], list[list[str]]]:
    names = _OF_SESSIONS if by == "session" else tuple(_USED)
    more = {"tenant": ["tenant", "others"], "session": ["session"]}.get(by, [])
    found = []
    for row in rows:
        of = {"tenant": [row.tenant, "yes" if row.others else ""], "session": [row.session]}.get(by, [])
        deleted = _at(row.deleted_us) if row.deleted_us else ""
        since = _at(row.since_us) if row.since_us else ""
        # What is not known is no number, which a sum would take for nothing.
        used = ["unknown" if row.unknown else str(_USED[name](row)) for name in names]
        found.append([row.namespace, row.name, deleted, since, *of, *used])
    return ["namespace", "name", "deleted", "since", *more, *names], found


def _alarm(s: control_pb2.SessionInfo) -> str:
    """When the next one is run."""
    due = [alarm.next_us for alarm in s.alarms if alarm.next_us]
    return _at(min(due)) if due else "given up" if s.alarms else "-"


def _due(alarm: control_pb2.AlarmInfo) -> str:
    if not alarm.tries:
        return f"due {_at(alarm.due_us)}"
    then = f"next {_at(alarm.next_us)}" if alarm.next_us else "given up"
    return f"was due {_at(alarm.due_us)}, tries: {alarm.tries}, {then} ({plain(alarm.error)})"


def _state(s: control_pb2.SessionInfo) -> str:
    if s.ended:
        return "ended"
    return "owned" if s.owner else "hibernated"


def _size(size: int) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g}{unit}"
        size = size / 1024  # type: ignore[assignment]
    return f"{size:.3g}GiB"


def _since(since_us: int) -> str:
    if not since_us:
        return "-"
    seconds = max(0, int(time.time() - since_us / 1e6))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def _at(when_us: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when_us / 1e6)) if when_us else "-"
