"""What `dormouse apply -f` and `dormouse up DIR` read: files, folders, several documents, and what is not ours among them."""

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from dormouse import documents, main
from dormouse_testing.manifests import onnx


def named(name: str, **more: object) -> str:
    return yaml.safe_dump({**onnx(**more), "metadata": {"name": name}})


SERVICE = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n"


def put(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)


def functions(reading: documents.DocumentReading) -> list[str]:
    return [document.function for document in reading.documents]


def test_a_file_of_several_documents(tmp_path: Path) -> None:
    put(tmp_path, all_yaml=f"---\n{named('a')}---\n{SERVICE}---\n# nothing\n---\n{named('b')}")
    found = documents.read([str(tmp_path / "all.yaml")])
    assert [(d.function, d.where.rpartition("/")[2]) for d in found.documents] == [
        ("default/a", "all.yaml, document 1"),
        ("default/b", "all.yaml, document 3"),
    ]
    assert found.others == [f"{tmp_path}/all.yaml, document 2: Service web is not an InferenceFunction; it is left out"]
    assert found.faults == []
    assert json.loads(found.documents[0].text)["metadata"] == {"name": "a"}


def test_a_folder_is_read_in_the_order_of_names_and_not_below(tmp_path: Path) -> None:
    put(tmp_path, b_yaml=named("b"), a_yml=named("a"), c_json=json.dumps({**onnx(), "metadata": {"name": "c"}}), d_txt=named("d"))
    put(tmp_path, values_yaml="kind: {{ broken template", labels_json="[1]", web_yaml=SERVICE)
    (tmp_path / ".hidden.yaml").write_text(named("hidden"))
    (tmp_path / "below").mkdir()
    put(tmp_path / "below", e_yaml=named("e"))
    (tmp_path / "bytes.yaml").write_bytes(b"\xff")
    found = documents.read([str(tmp_path)])
    assert functions(found) == ["default/a", "default/b", "default/c"]
    assert [sentence.partition(":")[0] for sentence in found.others] == ["bytes.yaml", "labels.json", "values.yaml", "web.yaml"]
    assert found.faults == []


def test_a_list_as_kubectl_writes_it(tmp_path: Path) -> None:
    items = [{**onnx(), "metadata": {"name": name}} for name in "ab"]
    put(tmp_path, list_yaml=yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": [*items, yaml.safe_load(SERVICE)]}))
    found = documents.read([str(tmp_path / "list.yaml")])
    assert functions(found) == ["default/a", "default/b"]
    assert "document 1.3: Service web" in found.others[0]


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(f"{named('a')}---\n{named('b', maxReplicas=0)}".encode())))
    found = documents.read(["-"])
    assert functions(found) == ["default/a"]
    assert found.faults == ["standard input, document 2: spec.maxReplicas: 0 found, a whole number from 1 to 1000 is allowed"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (named("a", maxReplicas=0), "spec.maxReplicas: 0 found"),
        ("kind: [InferenceFunction", "manifest: line 1"),
        ("just text: InferenceFunction\n---\n", "apiVersion: not found"),
        ("- InferenceFunction", "an object with apiVersion"),
        ("kind: InferenceFunction\nkind: InferenceFunction", "found again"),
        (named("a") + "---\n" + named("a"), "document 2: default/a found, which is in f.yaml, document 1 already"),
    ],
)
def test_one_that_is_wrong_is_named_with_its_file_and_number(tmp_path: Path, text: str, fault: str) -> None:
    put(tmp_path, f_yaml=text, g_yaml=named("good"))
    found = documents.read([str(tmp_path)])
    assert "default/good" in functions(found)
    assert found.faults[0].startswith("f.yaml")
    assert fault in found.faults[0]


def test_one_function_in_two_files_is_told_with_both(tmp_path: Path) -> None:
    put(tmp_path, a_yaml=named("a"), b_json=json.dumps({**onnx(), "metadata": {"name": "a"}}))
    assert documents.read([str(tmp_path)]).faults == ["b.json: default/a found, which is in a.yaml already; once is allowed"]


@pytest.mark.parametrize("files", [{"a_yaml": named("a"), "b_yaml": named("b", maxReplicas=0)}, {"web_yaml": SERVICE}, {}])
def test_nothing_is_applied_unless_all_can_be_read(
    tmp_path: Path, files: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def control(*given: object) -> None:
        raise AssertionError("the operator was asked")

    monkeypatch.setattr("dormouse.commands.control", control)
    put(tmp_path, **files)
    assert main.main(["apply", "-f", str(tmp_path)]) == 1
    told = capsys.readouterr()
    assert ("nothing was applied" in told.err) == ("a_yaml" in files)
    assert "b.yaml: spec.maxReplicas" in told.err or "no InferenceFunction" in told.err
    assert told.out == ""


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert documents.read([str(tmp_path / "none.yaml")]).faults == [f"{tmp_path}/none.yaml: No such file or directory"]
