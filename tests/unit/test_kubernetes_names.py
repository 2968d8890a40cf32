"""Names and labels of what a function consists of: within Kubernetes' limits for the longest name, and nobody else's."""

import re
from typing import Any

from dormouse_operator.kubernetes.objects import names
from dormouse_operator.kubernetes.objects.manifests import build_all
from dormouse_operator.kubernetes.settings import ClusterSettings
from dormouse_testing.cluster_objects import entry
from dormouse_testing.manifests import onnx
from hypothesis import given, settings
from hypothesis import strategies as st

LONGEST = "a" + "-" * 50 + "z"
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
NAMES = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,50}[a-z0-9])?", fullmatch=True)


def labels_in(data: Any) -> list[str]:
    """The values of all labels and selectors."""
    if isinstance(data, list):
        return [value for each in data for value in labels_in(each)]
    if not isinstance(data, dict):
        return []
    own = [value for name in ("labels", "matchLabels") for value in data.get(name, {}).values()]
    return own + [value for each in data.values() for value in labels_in(each)]


@settings(max_examples=60, deadline=None)
@given(NAMES | st.just(LONGEST), st.uuids().map(str))
def test_every_name_and_label_fits(name: str, uid: str) -> None:
    made = build_all(entry({**onnx(), "metadata": {"name": name}}, uid=uid), ClusterSettings(store_secret=b"s"))
    for each in made:
        assert LABEL.fullmatch(each["metadata"]["name"]), each["metadata"]["name"]
        assert all(VALUE.fullmatch(value) for value in labels_in(each))
    assert len({(each["kind"], each["metadata"]["name"]) for each in made}) == len(made)


def test_negative_control_one_character_more_does_not_fit() -> None:
    assert len(LONGEST) == 52
    assert LABEL.fullmatch(names.workers_service(LONGEST, "u"))
    assert not LABEL.fullmatch(names.workers_service(f"{LONGEST}z", "u"))


@given(NAMES, NAMES, st.sampled_from(["aaaaaaaaaaaa", "bbbbbbbbbbbb"]), st.sampled_from(["aaaaaaaaaaaa", "bbbbbbbbbbbb"]))
def test_no_two_functions_share_a_name_of_a_kind(one: str, other: str, first: str, second: str) -> None:
    for each in (names.secret, names.policy, names.budget, names.service):
        assert (each(one) == each(other)) == (one == other)
    assert (names.deployment(one, first) == names.deployment(other, second)) == ((one, first) == (other, second))
    assert names.deployment(one, first) != names.deployment(f"{one}-{first[:6]}", second)
