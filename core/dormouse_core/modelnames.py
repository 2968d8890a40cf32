"""Which function a `model_name` means.

A function's name is a DNS label; other servers' models have capitals, '_' and '.' in theirs. `dormouse init` makes a function's name out of
a model's, and here a caller that knows the model by its own name finds the function. router.lua computes the same.
"""

import re

LONGEST = 256
"""More than any function's; what is longer is looked for nowhere."""
_LABEL = "[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_FUNCTION = re.compile(_LABEL)
_MODEL = re.compile("[A-Za-z0-9](?:[-_.A-Za-z0-9]*[A-Za-z0-9])?")
_NAMED = re.compile(f"(?:({_LABEL})/)?([^/]+)")


def parse(model: str) -> tuple[str, str] | None:
    """The namespace ('': not given) and the function's name in `name` or `namespace/name`. None: no function can be called so."""
    match = _NAMED.fullmatch(model) if len(model) <= LONGEST else None
    if match is None:
        return None
    namespace, name = match[1] or "", match[2]
    if _FUNCTION.fullmatch(name):
        return namespace, name
    if _MODEL.fullmatch(name):
        return namespace, re.sub("[-_.]+", "-", name.lower())
    return None
