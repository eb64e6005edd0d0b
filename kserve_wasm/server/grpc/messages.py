"""The gRPC messages, from ``messages.binpb`` (``hack/protos`` holds its sources and the command that makes it).

They live in a descriptor pool of their own. KServe's SDK registers messages of the same names, without Triton's
extensions, in the process-wide pool, which refuses a second definition.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

POOL = DescriptorPool()
for _file in FileDescriptorSet.FromString(files(__package__).joinpath("messages.binpb").read_bytes()).file:
    POOL.Add(_file)

INFERENCE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"


def message(name: str) -> Any:
    """Look up the class of a message by its full name."""
    return GetMessageClass(POOL.FindMessageTypeByName(name))


ModelInferRequest = message("inference.ModelInferRequest")
ModelInferResponse = message("inference.ModelInferResponse")
ModelStreamInferResponse = message("inference.ModelStreamInferResponse")
