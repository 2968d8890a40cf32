"""A model's metadata in the words of the Open Inference Protocol and of Triton's model configuration.

A worker answers so about itself, and the gateway about functions that sleep: from the same message, by the same code.
"""

from typing import Any

from dormouse_proto import inference_pb2, state_pb2

from dormouse_core.tensors import DATATYPES

VERSION = "1"  # a function has one version at a time; its revisions are not addressed by callers


def model_metadata(name: str, metadata: state_pb2.ModelMetadata) -> inference_pb2.ModelMetadataResponse:
    tensor = inference_pb2.ModelMetadataResponse.TensorMetadata
    return inference_pb2.ModelMetadataResponse(
        name=name,
        versions=[VERSION],
        platform=metadata.platform,
        inputs=[tensor(name=t.name, datatype=t.datatype, shape=t.shape) for t in metadata.inputs],
        outputs=[tensor(name=t.name, datatype=t.datatype, shape=t.shape) for t in metadata.outputs],
    )


def model_config(name: str, metadata: state_pb2.ModelMetadata, delay_us: int, idle_us: int) -> inference_pb2.ModelConfig:
    """Triton's form: `dims` without the batch dimension where the model batches. `delay_us`: batching's; `idle_us`: a
    session's time to live.
    """
    batches = metadata.max_batch_size > 0

    def dims(tensor: state_pb2.TensorMetadata) -> list[int]:
        shape = list(tensor.shape)
        return shape[1:] if batches and shape[:1] == [-1] else shape

    config = inference_pb2.ModelConfig(
        name=name,
        platform=metadata.platform,
        backend="onnxruntime" if metadata.platform.startswith("onnx") else metadata.platform,
        max_batch_size=metadata.max_batch_size,
        input=[
            inference_pb2.ModelInput(name=t.name, data_type=_triton(t.datatype), dims=dims(t), optional=t.optional) for t in metadata.inputs
        ],
        output=[inference_pb2.ModelOutput(name=t.name, data_type=_triton(t.datatype), dims=dims(t)) for t in metadata.outputs],
    )
    config.model_transaction_policy.decoupled = metadata.decoupled
    if metadata.state_version:
        sequences = config.sequence_batching
        sequences.max_sequence_idle_microseconds = idle_us
        for state in metadata.states:
            sequences.state.add(input_name=state.name, data_type=_triton(state.datatype), dims=state.shape)
    elif batches:
        config.dynamic_batching.max_queue_delay_microseconds = delay_us
    return config


def _triton(datatype: str) -> Any:
    return inference_pb2.DataType.Value(DATATYPES[datatype].triton)
