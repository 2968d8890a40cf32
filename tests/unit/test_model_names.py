"""A function is found by the name that its model had elsewhere."""

import re
from pathlib import Path

import pytest
from dormouse import initial
from dormouse_core import headernames, modelnames
from dormouse_core.errors import InvalidArgument
from dormouse_core.spec.objects import DNS_LABEL
from dormouse_gateway import naming
from dormouse_proto import inference_pb2
from dormouse_worker.batches.requests import Decoder
from dormouse_worker.models.signatures import Signature, TensorSpec
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("model", "found"),
    [
        ("vad", ("", "vad")),
        ("speech/vad", ("speech", "vad")),
        ("Densenet_ONNX.v2", ("", "densenet-onnx-v2")),
        ("speech/Silero_VAD", ("speech", "silero-vad")),
        ("a--b", ("", "a--b")),
        ("a_-b", ("", "a-b")),
        *((text, None) for text in ("", "_a", "a_", "a b", "é", "A/b", "a/b/c", "/a", "a/", "a\n", "a" * 257)),
    ],
)
def test_names(model: str, found: tuple[str, str] | None) -> None:
    assert modelnames.parse(model) == found


@given(st.from_regex("[A-Za-z0-9]([A-Za-z0-9_.]{0,40}[A-Za-z0-9])?", fullmatch=True))
def test_it_is_the_name_that_init_gives(model: str) -> None:
    found = modelnames.parse(model)
    assert found is not None
    assert re.fullmatch(DNS_LABEL, found[1])
    if model != "model":
        assert found == ("", initial._name(Path(f"/models/{model}.onnx")))


def test_the_gateway_and_the_worker_agree() -> None:
    decoder = Decoder(Signature("onnx", (TensorSpec("x", "FP32", (1,)),), ()), ("my-model", "ns/my-model"))

    def taken(model: str) -> bool:
        try:
            decoder.decode(inference_pb2.ModelInferRequest(model_name=model).SerializeToString())
        except InvalidArgument as error:
            return not error.message.startswith("model_name")
        return True

    for model in ("", "my-model", "My_Model", "ns/my-model", "ns/MY.MODEL"):
        assert naming.function({headernames.FUNCTION: "ns/my-model"}, model, "default").label == "ns/my-model"
        assert taken(model), model
    for model in ("my-model2", "other/my-model", "default/My_Model", "My Model", "ns/", "é"):
        with pytest.raises(InvalidArgument, match="model_name"):
            naming.function({headernames.FUNCTION: "ns/my-model"}, model, "default")
        assert not taken(model), model
    assert naming.function({}, "My_Model", "default").label == "default/my-model"
