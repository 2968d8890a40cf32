"""Each name of our metadata is written once, and no caller can say what only a gateway says."""

import re
from pathlib import Path

from dormouse_core import headernames

ROOT = Path(__file__).parents[2]
NAMES = {value for name, value in vars(headernames).items() if name.isupper() and isinstance(value, str)}
PARTS = ("core", "kit", "gateway", "operator", "worker", "cli")


def test_no_name_is_written_beside_the_table() -> None:
    literal = re.compile(r"""["'](dormouse-[a-z-]+)["']""")
    found = {
        f"{path.relative_to(ROOT)}: {name}"
        for part in PARTS
        for path in (ROOT / part).rglob("*.py")
        for name in literal.findall(path.read_text(encoding="utf-8"))
        if name in NAMES and path.name != "headernames.py"
    }
    assert found == {"operator/dormouse_operator/kubernetes/objects/names.py: dormouse-function"}, "a label's value, no header"


def test_lua_knows_no_other_names() -> None:
    scripts = list((ROOT / "gateway").rglob("*.lua"))
    found = {name for path in scripts for name in re.findall(r"dormouse-[a-z]+(?:-[a-z]+)*", path.read_text(encoding="utf-8"))}
    assert len(scripts) == 4
    assert found
    assert found <= NAMES


def test_a_name_is_a_callers_or_removed_from_what_callers_send_or_written_over() -> None:
    replies = {headernames.STEP, headernames.BY, headernames.DECOUPLED, headernames.BROKEN}
    written = {headernames.MAX_MESSAGE, headernames.HOPS}  # bootstrap.py and resources.py, OVERWRITE_IF_EXISTS_OR_ADD
    assert NAMES - headernames.CALLERS - replies - written == set(headernames.GATEWAYS)
