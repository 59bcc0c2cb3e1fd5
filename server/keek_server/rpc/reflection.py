"""Server reflection, v1 and v1alpha, so that ghz and grpcurl need no proto files."""

from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection, reflection_pb2

_V1 = "grpc.reflection.v1.ServerReflection"


class _MethodPool:
    """The descriptor pool, with methods: protobuf's own finds no file for a method's name.

    ghz asks for nothing else (https://github.com/grpc/grpc/issues/34743).
    """

    def __init__(self, pool: DescriptorPool) -> None:
        self._pool = pool

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:
        """The file that declares a message, an enum, a service or a method; KeyError when none does."""
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            return self._pool.FindMethodByName(symbol).containing_service.file


def add_reflection(server: grpc.aio.Server, services: Sequence[str]) -> None:
    """Lets clients ask `server` for `services` and their messages."""
    names = (*services, reflection.SERVICE_NAME, _V1)
    pool: Any = _MethodPool(descriptor_pool.Default())
    reflection.enable_server_reflection(names, server, pool)
    # The package knows v1alpha alone; v1 has the same messages under another service name.
    servicer: Any = reflection.aio.ReflectionServicer(names, pool)
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    handlers = {"ServerReflectionInfo": method}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_V1, handlers),))
