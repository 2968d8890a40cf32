"""The operator's rights beside what its code asks of the API server: none is missing, and none is there that nothing uses."""

import ast
from collections.abc import Iterator
from pathlib import Path

import dormouse_operator.kubernetes
from dormouse_operator.kubernetes.api import kinds
from dormouse_operator.kubernetes.api.kinds import APPLIED, FUNCTIONS, PODS, SECRETS, Kind
from dormouse_testing.cluster.charts import Object, render

Right = tuple[str, str, str]  # API group, resource, verb

VERBS = {name: name for name in ("get", "list", "watch", "create", "patch", "delete")} | {"replace": "update"}
WATCHED = (PODS, *(kind for kind in APPLIED if kind is not SECRETS))
ANY_KIND = {"applying.py": APPLIED, "reflecting.py": WATCHED}
KOPF = ((FUNCTIONS, "list"), (FUNCTIONS, "watch"))
OWN_NAMESPACE = ("budgets.py", "own_events.py", "secrets", "members")
"""Modules and rooms that ask in the installation's namespace: for the gateways' budget and pods and the operator's own pod, with Events
about the operator, and for etcd's Secrets and members."""
CLAIMS = "claiming.py"  # asks where no list of namespaces is served


def test_rights_are_those_that_the_operator_uses(helm: str) -> None:
    functions, system, claims = set[Right](), set[Right](), set[Right]()
    for path in sorted(Path(dormouse_operator.kubernetes.__file__).parent.rglob("*.py")):
        for kind, verb, part in _requests(path):
            right = _right(kind, verb, part)
            if path.name in OWN_NAMESPACE or path.parent.name in OWN_NAMESPACE:
                system.add(right)
                if verb != "patch":
                    continue
            (claims if path.name == CLAIMS else functions).add(right)
    functions |= {_right(kind, verb) for kind, verb in KOPF}
    assert _granted(render(helm).one("ClusterRole", "system-dormouse-operator")) == functions | claims
    selected = render(helm, "namespaceSelector.matchLabels.team=a").one("ClusterRole", "system-dormouse-operator")
    assert _granted(selected) == functions | claims | {_right(kinds.NAMESPACES, "list"), _right(kinds.NAMESPACES, "watch")}
    rendered = render(helm, "namespaces={a}")
    assert _granted(rendered.one("Role", "dormouse-operator")) == functions
    assert _granted(rendered.one("Role", "dormouse-operator-system")) == system


def _requests(path: Path) -> Iterator[tuple[Kind, str, str]]:
    """Every `self._api.verb(KIND, ...)`. Reviews of tokens and of access are the role system:auth-delegator's."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Attribute(attr="_api"), attr=method), args=[first, *_]) if method in VERBS:
                part = next((ast.literal_eval(each.value) for each in node.keywords if each.arg == "part"), "")
                if isinstance(first, ast.Name) and first.id.isupper():
                    if not first.id.endswith("_REVIEWS"):
                        yield getattr(kinds, first.id), VERBS[method], part
                else:
                    yield from ((kind, VERBS[method], part) for kind in ANY_KIND[path.name])
            case ast.Call(func=ast.Attribute(value=ast.Attribute(attr="_api"), attr="evict")):
                yield PODS, "create", "eviction"


def _right(kind: Kind, verb: str, part: str = "") -> Right:
    return kind.version.rpartition("/")[0], f"{kind.plural}/{part}" if part else kind.plural, verb


def _granted(role: Object) -> set[Right]:
    return {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
