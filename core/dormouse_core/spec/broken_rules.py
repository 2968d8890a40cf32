"""The rules, applied to a function: which of them it breaks, as sentences in the manifest's words."""

from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from dormouse_core.spec.objects import InferenceFunction
from dormouse_core.spec.rules import RULES, Rule
from dormouse_core.spec.validation import shown


def nodes(function: InferenceFunction, at: str) -> Iterator[tuple[str, Any]]:
    """The nodes of `function` that `at` names, each with its path; none where an optional part on the way is absent."""
    found: list[tuple[str, Any]] = [("", function)]
    for step in at.split(".") if at else ():
        name, listed = step.removesuffix("[]"), step.endswith("[]")
        following: list[tuple[str, Any]] = []
        for path, node in found:
            item = attribute(node, name)
            where = f"{path}.{name}" if path else name
            if listed:
                following += [(f"{where}[{index}]", each) for index, each in enumerate(item)]
            elif item is not None:
                following.append((where, item))
        found = following
    yield from found


def attribute(node: Struct, name: str) -> Any:
    """The value of the field that JSON calls `name`."""
    index = node.__struct_encode_fields__.index(name)
    return getattr(node, node.__struct_fields__[index])


def _value(node: Any, field: str) -> Any:
    for name in field.split(".") if field else ():
        if node is None:
            return None
        node = attribute(node, name)
    return node


def _found(rule: Rule, node: Any) -> str:
    return rule.found(node) if rule.found else _shown(_value(node, rule.field))


def broken(function: InferenceFunction) -> list[str]:
    """The message of every rule that `function` breaks."""
    return [
        f"{path}{'.' if path and rule.field else ''}{rule.field}: {_found(rule, node)} found, {rule.allowed}"
        for rule in RULES
        if not rule.changes
        for path, node in nodes(function, rule.at)
        if not rule.holds(node)
    ]


def broken_by_change(old: InferenceFunction, new: InferenceFunction) -> list[str]:
    """The message of every rule about changes that going from `old` to `new` breaks."""
    messages = []
    for rule in RULES:
        if not rule.changes:
            continue
        before, after = dict(nodes(old, rule.at)), dict(nodes(new, rule.at))
        for path in before.keys() & after.keys():
            if not rule.holds(before[path], after[path]):
                was, now = _shown(_value(before[path], rule.field)), _shown(_value(after[path], rule.field))
                messages.append(f"{path}.{rule.field}: {now} found where it was {was}, {rule.allowed}")
    return messages


def _shown(value: Any) -> str:
    return "nothing" if value is None else "an object" if isinstance(value, Struct) else shown(value)
