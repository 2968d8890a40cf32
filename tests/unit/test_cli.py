"""The command line: what it takes, where it looks, what it prints, and how it refuses."""

import dataclasses
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from dormouse import home, inputs, main, parts, printing
from dormouse.commands import _function
from dormouse.home import Home, Run
from dormouse_core import limits
from dormouse_core.errors import FailedPrecondition, InvalidArgument, Unavailable
from dormouse_operator import settings
from dormouse_operator.kubernetes import options
from dormouse_proto import control_pb2


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, dormouse; print([m for m in ('grpc', 'numpy', 'msgspec', 'yaml', 'google.protobuf') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_what_a_handler_needs_is_there() -> None:
    import dormouse

    assert dormouse.Handler.__name__ == "Handler"
    assert {dormouse.State.__name__, dormouse.Tensor.__name__, dormouse.Client.__name__} == {"State", "Tensor", "Client"}
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        dormouse.nope  # noqa: B018 - the access is the test


# ------------------------------------------------------------------------------------------------------------------ options


@pytest.mark.parametrize(
    "words",
    [
        "",
        "fly",
        "up",
        "up d --port x",
        "up d --port 70000",
        "apply",
        "scale fn",
        "scale fn many",
        "scale fn -1",
        "scale fn ²",
        "sessions fn --limit 0",
        "get -o xml",
    ],
)
def test_a_wrong_command_line_is_refused_with_its_usage(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main.main(words.split())
    assert end.value.code == 2
    assert "usage: dormouse" in capsys.readouterr().err


def test_sizes_of_the_store_and_of_messages(capsys: pytest.CaptureFixture[str]) -> None:
    parser = main.parser()
    default = parser.parse_args(["up", "d"])
    assert (default.etcd_quota, default.max_message) == (limits.ETCD_QUOTA_BYTES, limits.MESSAGE_BYTES)
    most = parser.parse_args(["up", "d", "--etcd-quota", "8GiB", "--max-message", "64MiB"])
    assert (most.etcd_quota, most.max_message) == (limits.ETCD_QUOTA_BYTES_MAX, limits.MESSAGE_BYTES_MAX)
    for option, size in (("--etcd-quota", limits.ETCD_QUOTA_BYTES_MAX), ("--max-message", limits.MESSAGE_BYTES_MAX)):
        with pytest.raises(SystemExit):
            parser.parse_args(["up", "d", option, str(size + 1)])
        assert f"at most {size >> 20}MiB, is allowed" in capsys.readouterr().err


@pytest.mark.parametrize("of", [settings.OperatorSettings, options.Options], ids=["one machine", "a cluster"])
def test_an_operator_that_is_told_no_quota_takes_etcds_own_default(of: type) -> None:
    [quota] = [field.default for field in dataclasses.fields(of) if field.name == "store_quota"]
    assert quota == 2 << 30


def test_the_help_says_how_long_the_removal_wait_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main.parser().parse_args(["up", "--help"])
    assert "by default 10m or more" in " ".join(capsys.readouterr().out.split())


def test_up_needs_a_folder_and_nothing_else() -> None:
    options = main.parser().parse_args(["up", "d"])
    assert (options.directory, options.port, options.removal_wait) == ("d", 8001, None)


def test_sequence_ids_are_numbers_where_they_can_be() -> None:
    parsed = main.parser().parse_args(["call", "fn", "--sequence-id", "-7"])
    assert parsed.sequence_id == -7
    assert main.parser().parse_args(["call", "fn", "--sequence-id", "seven"]).sequence_id == "seven"


def test_scale_takes_a_number_or_auto() -> None:
    assert main.parser().parse_args(["scale", "fn", "0"]).replicas == 0
    assert main.parser().parse_args(["scale", "fn", "auto"]).replicas is None


@pytest.mark.parametrize(("text", "named"), [("vad", ("default", "vad")), ("speech/vad", ("speech", "vad"))])
def test_functions_are_named_with_or_without_namespace(text: str, named: tuple[str, str]) -> None:
    assert _function(text) == named


def test_an_option_names_the_namespace_unless_the_function_does() -> None:
    assert _function("vad", "speech") == ("speech", "vad")
    assert _function("speech/vad", "speech") == ("speech", "vad")
    with pytest.raises(InvalidArgument, match="--namespace"):
        _function("speech/vad", "other")


@pytest.mark.parametrize("text", ["", "/", "a/", "/b", "a/b/c"])
def test_a_name_that_is_none(text: str) -> None:
    with pytest.raises(InvalidArgument, match="NAME or NAMESPACE/NAME"):
        _function(text)


# ------------------------------------------------------------------------------------------------------------------ the folder


def test_a_command_finds_the_nearest_system_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".dormouse").mkdir()
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    monkeypatch.delenv("DORMOUSE_DIR", raising=False)
    monkeypatch.chdir(deep)
    assert home.find(None).directory == tmp_path
    monkeypatch.setenv("DORMOUSE_DIR", str(deep))
    assert home.find(None).directory == deep
    assert home.find(str(tmp_path)).directory == tmp_path


def test_nothing_runs_and_how_to_start_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["get", "--dir", str(tmp_path)]) == 1
    told = f"nothing runs in {tmp_path}; start it with: dormouse up {tmp_path}, or name a folder where it runs: --dir, DORMOUSE_DIR"
    assert capsys.readouterr().err == f"dormouse: {told}\n"


def test_what_a_killed_run_left_behind_is_not_believed(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    place = Home(tmp_path)
    place.prepare()
    place.write_run(Run(ended.pid, "unix:/nowhere", "127.0.0.1:1", {}))
    with pytest.raises(Unavailable, match="nothing runs in"):
        place.read_run()
    place.write_run(Run(os.getpid(), "unix:/nowhere", "127.0.0.1:1", {"operator": 5}))
    assert place.read_run().metrics == {"operator": 5}


def test_one_system_a_folder(tmp_path: Path) -> None:
    place = Home(tmp_path)
    place.prepare()
    with place.locked(), pytest.raises(FailedPrecondition, match=f"runs here already, pid {os.getpid()}"), Home(tmp_path).locked():
        pass
    with place.locked():
        pass


def test_the_next_run_removes_what_a_killed_one_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    place = Home(tmp_path / ("x" * 120))
    place.directory.mkdir()
    place.prepare()
    left, others = tmp_path / "dormouse-killed", tmp_path / "dormouse-of-another"
    for folder in (left, others):
        folder.mkdir()
    (place.specs / "default.fn-1.json").write_text("{}")
    (place.reasons / "default.fn-1.json").write_text("{}")
    place.write_run(Run(1, f"unix:{left}/control.sock", "127.0.0.1:1", {}))
    with place.locked():
        assert not left.exists()
        assert others.exists()
        assert sorted(path.name for path in place.root.rglob("*")) == ["lock", "reasons", "specs"]


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="no such folder"):
        Home(tmp_path / "nope").prepare()


def test_sockets_fit_however_deep_the_folder_lies(tmp_path: Path) -> None:
    near, far = Home(tmp_path), Home(tmp_path / ("x" * 120))
    for place in (near, far):
        place.directory.mkdir(exist_ok=True)
        place.prepare()
        with place.sockets() as folder:
            assert len(os.fsencode(folder / "provider.sock")) <= home.LONGEST_SOCKET
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind(str(folder / "provider.sock"))
        assert not folder.exists()


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(FailedPrecondition, match=f"port {port} on 127.0.0.1 .*choose another with --port"):
            parts.choose(port)
    ports = parts.choose(0)
    numbers = [getattr(ports, name) for name in parts.Ports.__dataclass_fields__]
    assert len(set(numbers)) == len(numbers)


# ------------------------------------------------------------------------------------------------------------------ inputs


@pytest.mark.parametrize(
    ("text", "datatype", "expected"),
    [
        ("x=[[1,2.5]]", "FP32", np.array([[1, 2.5]], np.float32)),
        ("x=0.1", "FP32", np.array(0.1, np.float32)),
        ("x=[1,-2]", "INT8", np.array([1, -2], np.int8)),
        ("x=[true,false]", "BOOL", np.array([True, False])),
        ("x=[0,1]", "BOOL", np.array([False, True])),
        ("x=[]", "INT64", np.array([], np.int64)),
        ('x=["a","é"]', "BYTES", np.array([b"a", "é".encode()], object)),
        ("x=[1.5]", "BF16", np.array([0x3FC0], np.uint16)),
    ],
)
def test_json_becomes_the_declared_datatype(text: str, datatype: str, expected: np.ndarray) -> None:
    name, given = inputs.parse(text, {"x": datatype})
    assert (name, given.datatype) == ("x", datatype)
    assert given.array.dtype == expected.dtype
    assert given.array.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("text", "datatype", "message"),
    [
        ("x", "FP32", "NAME=JSON or NAME=@file.npy"),
        ("=1", "FP32", "NAME=JSON or NAME=@file.npy"),
        ("y=1", "FP32", "has no such input, it has x"),
        ("x=[1", "FP32", "'[1' found, JSON is allowed, such as 'x=[[1, 2]]'"),
        ("x=red", "BYTES", """'red' found, JSON is allowed, such as 'x=[["text"]]'"""),
        ("x=[[1],[1,2]]", "FP32", "all of one length"),
        ('x=["a"]', "FP32", "all of one length"),
        ("x=300", "INT8", "that INT8 does not hold"),
        ("x=1.5", "INT64", "that INT64 does not hold"),
        ("x=[NaN]", "INT64", "that INT64 does not hold"),
        ("x=1e99", "INT64", "that INT64 does not hold"),
        ("x=99999999999999999999999", "INT64", "all of one length"),
        ("x=-1", "UINT8", "that UINT8 does not hold"),
        ("x=[7]", "BYTES", "7 found at element 0, text is allowed"),
        ("x=@nowhere.npy", "FP32", "cannot be read"),
    ],
)
def test_a_value_that_is_not_is_refused(text: str, datatype: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(message)):
        inputs.parse(text, {"x": datatype})


def test_an_array_comes_from_a_file_and_nothing_is_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 3), np.float32))
    _, given = inputs.parse(f"x=@{tmp_path / 'a.npy'}", {"x": "FP32"})
    assert given.array.shape == (2, 3)
    with pytest.raises(InvalidArgument, match="holds float32, INT64"):
        inputs.parse(f"x=@{tmp_path / 'a.npy'}", {"x": "INT64"})
    np.save(tmp_path / "o.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(InvalidArgument, match="cannot be read"):
        inputs.parse(f"x=@{tmp_path / 'o.npy'}", {"x": "BYTES"})


# ------------------------------------------------------------------------------------------------------------------ printing


def status(**fields: object) -> control_pb2.FunctionStatus:
    return control_pb2.FunctionStatus(namespace="ns", name="fn", phase="Ready", replicas=2, ready_replicas=1, **fields)  # type: ignore[arg-type]


def test_functions_as_a_table() -> None:
    found = [status(sessions=3), status(sessions=4, hibernated_bytes=5 << 20, sessions_known=True)]
    found[0].conditions.add(type="Ready", status="True", message="It serves.")
    assert printing.functions(found, "").splitlines() == [
        "NAMESPACE  NAME  PHASE  READY  WORKERS  SESSIONS  HIBERNATED  ASLEEP",
        "ns         fn    Ready  True   1/2      3         -           -",
        "ns         fn    Ready  -      1/2      4         5MiB        -",
    ]
    wide = printing.functions([status(reason="load", revision="r1", wanted_revision=wanted) for wanted in ("r1", "r2")], "wide")
    assert [line.split()[8:10] for line in wide.splitlines()] == [["REVISION", "WANTED"], ["r1", "-"], ["r1", "r2"]]
    assert "WHY" in wide
    assert printing.functions([], "") == "no functions"


@pytest.mark.parametrize("phase", ["Failed", "Serving"])
def test_a_model_that_does_not_load_is_told_below_the_table_even_while_an_older_one_serves(phase: str) -> None:
    failed = status()
    failed.phase = phase
    failed.conditions.add(type="Ready", status="False", message="The function cannot be served: opset 99 found")
    failed.conditions.add(type="ModelReady", status="False", message="opset 99 found")
    failed.conditions.add(type="RolledOut", status="False", message="Workers of revision b ready: 0 of 1.")
    assert printing.functions([failed], "").splitlines()[2:] == ["ns/fn: ModelReady: opset 99 found"]


@pytest.mark.parametrize(
    ("reason", "told"),
    [("Dependent", True), ("NotShown", True), ("Contradicted", True), ("NoBatch", False), ("Declared", False), ("Independent", False)],
)
def test_why_calls_run_alone_is_told_below_the_table_where_it_is_news(reason: str, told: bool) -> None:
    found = status()
    found.conditions.add(type="Batching", status="True" if reason == "Independent" else "False", reason=reason, message="Every call ...")
    assert printing.functions([found], "").splitlines()[2:] == (["ns/fn: Batching: Every call ..."] if told else [])


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_functions_for_machines(form: str) -> None:
    import yaml

    data = yaml.safe_load(printing.functions([status()], form))
    assert (data["name"], data["readyReplicas"], data["sessions"]) == ("fn", 1, 0)
    assert [d["name"] for d in yaml.safe_load(printing.functions([status(), status()], form))] == ["fn", "fn"]
