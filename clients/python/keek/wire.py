"""The few messages of `google.rpc` and `grpc.health.v1` that the client reads and writes.

They are built at run time in a descriptor pool of their own, under names of their own:
the client needs neither googleapis-common-protos nor grpcio-health-checking, and does
not collide with them where they are installed. Field numbers and types are those of
google/rpc/status.proto, google/rpc/error_details.proto and grpc/health/v1/health.proto;
the wire format knows nothing of names.
"""

from typing import Any, Final, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE: Final = "keek.wire"
_Proto = descriptor_pb2.FieldDescriptorProto


class _Field(NamedTuple):
    name: str
    number: int
    type: "descriptor_pb2.FieldDescriptorProto.Type.ValueType | str"
    """A scalar type, or the name of another message of this table."""
    repeated: bool = False


_MESSAGES: Final[dict[str, tuple[_Field, ...]]] = {
    # google.rpc.Status; each of its details is a google.protobuf.Any.
    "Status": (
        _Field("code", 1, _Proto.TYPE_INT32),
        _Field("message", 2, _Proto.TYPE_STRING),
        _Field("details", 3, "Detail", repeated=True),
    ),
    "Detail": (_Field("type_url", 1, _Proto.TYPE_STRING), _Field("value", 2, _Proto.TYPE_BYTES)),
    "ErrorInfo": (
        _Field("reason", 1, _Proto.TYPE_STRING),
        _Field("domain", 2, _Proto.TYPE_STRING),
        _Field("metadata", 3, "MetadataEntry", repeated=True),
    ),
    # A map is a repeated message of key and value.
    "MetadataEntry": (_Field("key", 1, _Proto.TYPE_STRING), _Field("value", 2, _Proto.TYPE_STRING)),
    "BadRequest": (_Field("field_violations", 1, "FieldViolation", repeated=True),),
    "FieldViolation": (_Field("field", 1, _Proto.TYPE_STRING), _Field("description", 2, _Proto.TYPE_STRING)),
    "RetryInfo": (_Field("retry_delay", 1, "Duration"),),
    "Duration": (_Field("seconds", 1, _Proto.TYPE_INT64), _Field("nanos", 2, _Proto.TYPE_INT32)),
    "HealthCheckRequest": (_Field("service", 1, _Proto.TYPE_STRING),),
    # An enum is an int32 on the wire.
    "HealthCheckResponse": (_Field("status", 1, _Proto.TYPE_INT32),),
}

SERVING: Final = 1
"""The value of a HealthCheckResponse's status for a service that takes calls."""

HEALTH_CHECK: Final = "/grpc.health.v1.Health/Check"
"""The path of the health check."""


def _declare(message: descriptor_pb2.DescriptorProto, field: _Field) -> None:
    label = _Proto.LABEL_REPEATED if field.repeated else _Proto.LABEL_OPTIONAL
    declared = message.field.add(name=field.name, number=field.number, label=label)
    if isinstance(field.type, str):
        declared.type = _Proto.TYPE_MESSAGE
        declared.type_name = f".{_PACKAGE}.{field.type}"
    else:
        declared.type = field.type


# The classes are made at run time, so their fields are not known to a type checker.
def _build() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="keek/wire.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field in fields:
            _declare(message, field)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in _MESSAGES
    }


_CLASSES: Final = _build()

Status: Final = _CLASSES["Status"]
ErrorInfo: Final = _CLASSES["ErrorInfo"]
BadRequest: Final = _CLASSES["BadRequest"]
RetryInfo: Final = _CLASSES["RetryInfo"]
HealthCheckRequest: Final = _CLASSES["HealthCheckRequest"]
HealthCheckResponse: Final = _CLASSES["HealthCheckResponse"]
