"""The descriptor pool of every message in this package.

One process may import `dormouse`, `tritonclient` and `kserve` together: each of the last two registers package `inference` in protobuf's
default pool, which refuses a second, different definition. The well-known types are copied here because a pool resolves its imports
within itself.
"""

from google.protobuf import (
    any_pb2,
    descriptor_pb2,
    descriptor_pool,
    duration_pb2,
    empty_pb2,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
)

POOL = descriptor_pool.DescriptorPool()
for _module in (descriptor_pb2, any_pb2, duration_pb2, empty_pb2, struct_pb2, timestamp_pb2, wrappers_pb2):
    POOL.AddSerializedFile(_module.DESCRIPTOR.serialized_pb)
