"""The `InferenceFunction`: its types, and everything that is derived from them.

`parse_manifest` reads what a person wrote and refuses it with every fault named; `validate_update` refuses what may not change. What
was accepted goes through the system as a `FunctionSpec` (`spec_to_json`, `spec_from_json`: canonical, defaults filled in), named by
`revision_of`.

Reading manifests needs YAML, the rules and the types' inspection. A worker needs none of them, and its first caller waits for every import:
those names are loaded at their first use (PEP 562).
"""

from typing import TYPE_CHECKING

from dormouse_core.spec.canonical import (
    SCALING_FIELDS,
    from_json,
    revision_of,
    run,
    spec_from_json,
    spec_to_json,
    state_version_of,
    to_builtins,
    to_json,
)
from dormouse_core.spec.durations import Duration
from dormouse_core.spec.objects import (
    API_VERSION,
    KIND,
    Batching,
    Controls,
    EnvVar,
    FunctionSpec,
    InferenceFunction,
    Initial,
    Metadata,
    Model,
    PodSecurity,
    Resources,
    SessionsSpec,
    StateSpec,
    Timeouts,
    Volume,
    Workers,
)
from dormouse_core.spec.sizes import state_bytes, state_elements

if TYPE_CHECKING:
    from dormouse_core.spec.manifests import InvalidManifest, parse_manifest, read_all, validate_update

__all__ = [
    "API_VERSION",
    "KIND",
    "SCALING_FIELDS",
    "Batching",
    "Controls",
    "Duration",
    "EnvVar",
    "FunctionSpec",
    "InferenceFunction",
    "Initial",
    "InvalidManifest",
    "Metadata",
    "Model",
    "PodSecurity",
    "Resources",
    "SessionsSpec",
    "StateSpec",
    "Timeouts",
    "Volume",
    "Workers",
    "from_json",
    "parse_manifest",
    "read_all",
    "revision_of",
    "run",
    "spec_from_json",
    "spec_to_json",
    "state_bytes",
    "state_elements",
    "state_version_of",
    "to_builtins",
    "to_json",
    "validate_update",
]


def __getattr__(name: str) -> object:
    if name in ("InvalidManifest", "parse_manifest", "read_all", "validate_update"):
        from dormouse_core.spec import manifests

        return getattr(manifests, name)
    raise AttributeError(f"module 'dormouse_core.spec' has no attribute {name!r}")
