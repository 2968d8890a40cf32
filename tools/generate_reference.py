"""Writes what follows from the types in `dormouse_core.spec` and the table in `dormouse_core.limits`:

- `crds/inferencefunctions.yaml`, the CustomResourceDefinition, and the same within the chart, which cannot reach outside of its folder;
- `docs/reference/inferencefunction.md`, the object for people;
- `docs/reference/limits.md`, the limits;
- in `docs/architecture.md`, the lines at which it is decided.

With `--check` nothing is written; the exit status says whether the committed files are what this would write.
"""

import argparse
import ast
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import yaml
from dormouse_core import limits
from dormouse_core.spec import schema
from dormouse_core.spec.objects import API_VERSION, KIND
from dormouse_core.spec.rules import RULES

ROOT = pathlib.Path(__file__).resolve().parent.parent
MADE = "Made by tools/generate_reference.py from {}: edit that, then run `make generate`."

Node = dict[str, Any]


def crd() -> str:
    made = MADE.format("dormouse_core.spec")
    return f"# {made}\n" + yaml.safe_dump(schema.custom_resource_definition(), sort_keys=False, width=140, allow_unicode=True)


# ---------------------------------------------------------------------------------------------------------------------- the object


def type_of(node: Node) -> str:
    """A field's type in a few words."""
    if "enum" in node:
        return " \\| ".join(f"`{value}`" for value in node["enum"])
    match node.get("type"):
        case "array":
            return f"list of {type_of(node['items'])}"
        case "object" if "additionalProperties" in node:
            return f"map of {type_of(node['additionalProperties'])}"
        case "object" if node.get("x-kubernetes-preserve-unknown-fields"):
            return "object of Kubernetes"
        case "string" if any("duration(self)" in rule["rule"] for rule in node.get("x-kubernetes-validations", [])):
            return "duration"
        case "string" if node.get("format") == "date-time":
            return "time"
        case None:
            return "`zeros` \\| object"
        case kind:
            return str(kind)


def bounds_of(node: Node) -> str:
    """What a field's value is held to, beyond its type; '' where nothing."""
    if type_of(node) == "duration":
        return ""  # its description says so
    parts = []
    if "minimum" in node and "maximum" in node:
        parts.append(f"{node['minimum']:,} to {node['maximum']:,}")
    elif "minimum" in node:
        parts.append(f"{node['minimum']} and more")
    for key, unit in (("maxLength", "characters"), ("maxItems", "items"), ("maxProperties", "entries")):
        low, high = node.get(key.replace("max", "min"), 0), node.get(key)
        if high is not None and "enum" not in node:
            parts.append(f"{low} to {high:,} {unit}" if low else f"at most {high:,} {unit}")
    if "pattern" in node:
        parts.append("`" + node["pattern"].replace("|", "\\|") + "`")
    return ", ".join(parts)


def default_of(node: Node) -> str:
    default = node.get("default")
    return "" if default in (None, {}) else f"`{str(default).lower() if isinstance(default, bool) else default}`"


def sections(path: str, node: Node) -> Iterator[str]:
    """A table for the object at `path`, then those of the objects within it."""
    yield f"### `{path}`\n"
    yield "| field | type | default | what |\n| --- | --- | --- | --- |"
    deeper = []
    for name, field in node["properties"].items():
        item = field.get("items", field)
        if "properties" in item:
            deeper.append((f"{path}.{name}{'[]' if item is not field else ''}", item))
        told = field.get("description", "").replace("|", "\\|")
        bounds = bounds_of(field)
        default = "required" if name in node.get("required", ()) else default_of(field)
        yield f"| `{name}` | {type_of(field)} | {default} | {told}{f' ({bounds})' if bounds else ''} |"
    yield ""
    for at, item in deeper:
        yield from sections(at, item)


def reference() -> str:
    root = schema.root()
    lines = [
        f"<!-- {MADE.format('dormouse_core.spec')} -->\n",
        f"# {KIND}\n",
        f"`apiVersion: {API_VERSION}`, `kind: {KIND}`, short name `ifn`. {root['description']}\n",
        "A duration is whole numbers with the units h, m, s and ms: `250ms`, `60s`, `1h30m`. A null field is as an absent one.",
        "An object of Kubernetes goes into the workers' pods as it is; on one machine it has no effect.\n",
        "## spec\n",
        *sections("spec", root["properties"]["spec"]),
        "## Rules\n",
        "What spans several fields. The API server checks those that it can, Dormouse all of them when it reads the object.\n",
        "| where | what | checked by the API server |\n| --- | --- | --- |",
        *(f"| `{where(rule.at, rule.field)}` | {rule.allowed} | {'yes' if rule.cel else 'no'} |" for rule in RULES if not rule.changes),
        "\n## What does not change\n",
        "| where | what |\n| --- | --- |",
        *(f"| `{where(rule.at, rule.field)}` | {rule.allowed} |" for rule in RULES if rule.changes),
        "\n## status\n",
        "Written by Dormouse. `phase` is for eyes; logic reads conditions.\n",
        *sections("status", root["properties"]["status"]),
    ]
    return "\n".join(lines).rstrip() + "\n"


def where(at: str, field: str) -> str:
    return ".".join(part for part in (at, field) if part)


# -------------------------------------------------------------------------------------------------------------------------- limits


def limits_page() -> str:
    lines = [
        f"<!-- {MADE.format('dormouse_core.limits')} -->\n",
        "# Limits\n",
        "Dormouse's own limits, and those from below that it respects. *Checked* says who notices and what then happens.\n",
    ]
    for title, rows in limits.TABLE:
        lines += [f"## {title}\n", "| what | limit | where it comes from | checked |\n| --- | --- | --- | --- |"]
        lines += [f"| {row.what} | {limits.shown(row)} | {row.source} | {row.check} |" for row in rows]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


# ----------------------------------------------------------------------------------------------------------------- where it is decided


def line_of(path: str, symbol: str) -> int:
    """Where `function` or `Class.method` is defined. LookupError: nowhere."""
    nodes: Sequence[ast.AST] = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
    found: ast.AST | None = None
    for name in symbol.split("."):
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        found = next((node for node in nodes if isinstance(node, kinds) and node.name == name), None)
        if found is None:
            raise LookupError(f"docs/architecture.md names {symbol} in {path}, where it is not")
        nodes = found.body
    assert found is not None
    return int(found.lineno)


def architecture() -> str:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    return DECIDED.sub(lambda row: f"`{row[1]}:{line_of(row[1], row[2])}` `{row[2]}` |", text)


DECIDED = re.compile(r"`([\w/]+\.py):\d+` `([\w.]+)` \|")

FILES = {
    "docs/architecture.md": architecture,
    "crds/inferencefunctions.yaml": crd,
    "deploy/helm/dormouse/files/inferencefunctions.yaml": crd,
    "docs/reference/inferencefunction.md": reference,
    "docs/reference/limits.md": limits_page,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a committed file is stale")
    options = parser.parse_args()
    texts = {ROOT / name: make() for name, make in FILES.items()}
    stale = {path: text for path, text in texts.items() if not path.exists() or path.read_text(encoding="utf-8") != text}
    names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
    if options.check:
        sys.exit(f"stale: {names}; run `make generate`" if stale else 0)
    for path, text in stale.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    print("written:", names or "nothing, all were current")


if __name__ == "__main__":
    main()
