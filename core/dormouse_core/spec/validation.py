"""A manifest's data against the types: every fault at once, each with its path, what was found and what is allowed.

msgspec converts strictly, but stops at the first fault and speaks of Python. A person with five mistakes wants five sentences, in the
manifest's own words, and the same as the API server would refuse. So this walks the types (`msgspec.inspect`) beside the data. What passes
here converts; the rules that span fields come after (`rules`).

null means absent, as for the API server, except where somebody who writes it surely means something else: an empty `sessions:`.
"""

import datetime
import difflib
import json
import re
from typing import Any

from msgspec import inspect

from dormouse_core.spec.durations import Duration

MAX_DEPTH = 32  # of the parts that are passed on to Kubernetes unread


class Faults:
    """What is wrong with a manifest, in the order in which it is met."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def add(self, path: str, found: str, allowed: str) -> None:
        self.messages.append(f"{path}: {found} found, {allowed}")

    def __bool__(self) -> bool:
        return bool(self.messages)


def shown(value: Any) -> str:
    """A value as a message quotes it."""
    if isinstance(value, dict):
        return "an object" if value else "an empty object"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    if isinstance(value, datetime.date):
        return f"the date {value.isoformat()}"
    if value is None:
        return "null"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool | int | float) else type(value).__name__
    return text if len(text) <= 80 else f"{text[:76]}...{text[-1] if text[-1] == chr(34) else ''}"


def join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def check(kind: type, data: Any, path: str, faults: Faults) -> None:
    """Adds to `faults` what keeps `data` from being a `kind`."""
    _check(inspect.type_info(kind), data, path, faults, {})


def _check(node: inspect.Type, data: Any, path: str, faults: Faults, extra: dict[str, Any]) -> None:
    match node:
        case inspect.Metadata():
            _check(node.type, data, path, faults, {**extra, **(node.extra or {})})
        case inspect.UnionType():
            _union(node, data, path, faults, extra)
        case inspect.StructType():
            _struct(node, data, path, faults)
        case inspect.CustomType() if node.cls is Duration:
            _duration(data, path, faults, extra)
        case inspect.LiteralType():
            if data not in node.values or isinstance(data, bool):
                faults.add(path, shown(data), f"{_either([str(v) for v in node.values])} is allowed")
        case inspect.StrType():
            _text(node, data, path, faults, extra)
        case inspect.BoolType():
            if not isinstance(data, bool):
                faults.add(path, shown(data), "true or false is allowed")
        case inspect.IntType():
            _integer(node, data, path, faults)
        case inspect.ListType():
            _list(node, data, path, faults, extra)
        case inspect.DictType():
            _dict(node, data, path, faults)
        case inspect.AnyType():
            _plain(data, path, faults, 0)
        case _:
            raise TypeError(f"{path}: no rule for the type {node!r}")


def _union(node: inspect.UnionType, data: Any, path: str, faults: Faults, extra: dict[str, Any]) -> None:
    members = [member for member in node.types if not isinstance(member, inspect.NoneType)]
    if data is None and len(members) < len(node.types):
        return
    structs = [member for member in members if isinstance(member, inspect.StructType)]
    if isinstance(data, dict) and structs:
        _check(structs[0], data, path, faults, extra)
    elif len(members) == 1:
        _check(members[0], data, path, faults, extra)
    else:
        literals = [str(v) for member in members if isinstance(member, inspect.LiteralType) for v in member.values]
        if data not in literals:
            objects = [f"an object with {_either([f.encode_name for f in struct.fields])}" for struct in structs]
            faults.add(path, shown(data), f"{_either([*literals, *objects])} is allowed")


def _struct(node: inspect.StructType, data: Any, path: str, faults: Faults) -> None:
    if not isinstance(data, dict):
        faults.add(path, shown(data), f"an object with {_listed([f.encode_name for f in node.fields])} is allowed")
        return
    fields = {f.encode_name: f for f in node.fields}
    for name in data:
        if name not in fields:
            close = difflib.get_close_matches(str(name), fields, 1, 0.75)
            hint = f"; did you mean {close[0]}?" if close else ""
            faults.messages.append(f"{join(path, str(name))}: unknown field, {_listed(list(fields))} {_are(len(fields))} allowed{hint}")
    for name, f in fields.items():
        if data.get(name) is not None:
            _check(f.type, data[name], join(path, name), faults, {})
        elif f.required:
            faults.messages.append(f"{join(path, name)}: not found, it is required")


def _duration(data: Any, path: str, faults: Faults, extra: dict[str, Any]) -> None:
    if not isinstance(data, str):
        faults.add(path, shown(data), 'a duration with its unit such as "250ms", "60s", "10m" or "1h30m" is allowed')
        return
    try:
        duration = Duration(data)
    except ValueError as error:
        faults.messages.append(f"{path}: {error}")
        return
    low, high = extra.get("minimum"), extra.get("maximum")
    if (low is not None and duration < low) or (high is not None and duration > high):
        faults.add(path, shown(data), f"{low} to {high} is allowed")


def _text(node: inspect.StrType, data: Any, path: str, faults: Faults, extra: dict[str, Any]) -> None:
    if not isinstance(data, str):
        faults.add(path, shown(data), "text is allowed" + ("" if isinstance(data, dict | list) else " (put it in quotes)"))
        return
    low, high = node.min_length or 0, node.max_length
    if len(data) < low or (high is not None and len(data) > high):
        faults.add(path, f"{len(data)} characters", f"{low} to {high} are allowed" if low else f"at most {high} are allowed")
    elif node.pattern is not None and not re.fullmatch(node.pattern, data, re.ASCII):  # as Go: no newline before the end
        faults.add(path, shown(data), f"{extra.get('allowed', f'text that matches {node.pattern}')} is allowed")


def _integer(node: inspect.IntType, data: Any, path: str, faults: Faults) -> None:
    low, high = node.ge, node.le
    bounds = f" from {low} to {high}" if low is not None and high is not None else ""
    if isinstance(data, bool) or not isinstance(data, int) or (low is not None and data < low) or (high is not None and data > high):
        faults.add(path, shown(data), f"a whole number{bounds} is allowed")


def _list(node: inspect.ListType, data: Any, path: str, faults: Faults, extra: dict[str, Any]) -> None:
    if not isinstance(data, list):
        faults.add(path, shown(data), "a list is allowed")
        return
    low, high = node.min_length or 0, node.max_length
    if len(data) < low or (high is not None and len(data) > high):
        faults.add(path, f"{len(data)} items", f"{low} to {high} are allowed" if low else f"at most {high} are allowed")
        return
    seen: dict[Any, int] = {}
    for index, item in enumerate(data):
        at = f"{path}[{index}]"
        _check(node.item_type, item, at, faults, {})
        name = item.get(extra["map_key"]) if "map_key" in extra and isinstance(item, dict) else item if "set" in extra else None
        if isinstance(name, str) and seen.setdefault(name, index) != index:
            where = join(at, extra["map_key"]) if "map_key" in extra else at
            faults.add(where, shown(name), f"but {path}[{seen[name]}] has it already; each is allowed once")


def _dict(node: inspect.DictType, data: Any, path: str, faults: Faults) -> None:
    if not isinstance(data, dict):
        faults.add(path, shown(data), "an object is allowed")
        return
    if node.max_length is not None and len(data) > node.max_length:
        faults.add(path, f"{len(data)} entries", f"at most {node.max_length} are allowed")
        return
    for name, item in data.items():
        if not isinstance(name, str):
            faults.add(path, f"the key {shown(name)}", "text is allowed (put it in quotes)")
        else:
            _check(node.value_type, item, f"{path}[{shown(name)}]", faults, {})


def _plain(data: Any, path: str, faults: Faults, depth: int) -> None:
    """JSON's own types, to a depth. YAML knows more (dates, sets, binary), and JSON has no word for infinity."""
    if depth > MAX_DEPTH:
        faults.add(path, f"a nesting of more than {MAX_DEPTH}", f"at most {MAX_DEPTH} is allowed")
    elif isinstance(data, dict):
        for name, item in data.items():
            if isinstance(name, str):
                _plain(item, f"{path}[{shown(name)}]", faults, depth + 1)
            else:
                faults.add(path, f"the key {shown(name)}", "text is allowed (put it in quotes)")
    elif isinstance(data, list):
        for index, item in enumerate(data):
            _plain(item, f"{path}[{index}]", faults, depth + 1)
    elif isinstance(data, float) and (data != data or data in (float("inf"), float("-inf"))):
        faults.add(path, shown(data), "a finite number is allowed")
    elif not (data is None or isinstance(data, str | bool | int | float)):
        faults.add(path, shown(data), "what JSON can say is allowed (put it in quotes)")


def _either(names: list[str]) -> str:
    return _joined(names, "or")


def _listed(names: list[str]) -> str:
    return _joined(names, "and")


def _joined(names: list[str], word: str) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
