"""gRPC's errors become Keek's: one class a status, with what the server said about it."""

import pickle

import grpc
import pytest
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2

import keek
from keek.errors import from_rpc_error

CLASSES = {
    grpc.StatusCode.INVALID_ARGUMENT: keek.InvalidArgumentError,
    grpc.StatusCode.NOT_FOUND: keek.NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: keek.AlreadyExistsError,
    grpc.StatusCode.FAILED_PRECONDITION: keek.FailedPreconditionError,
    grpc.StatusCode.OUT_OF_RANGE: keek.OutOfRangeError,
    grpc.StatusCode.UNAUTHENTICATED: keek.UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: keek.PermissionDeniedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: keek.ResourceExhaustedError,
    grpc.StatusCode.UNAVAILABLE: keek.UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: keek.DeadlineExceededError,
    grpc.StatusCode.CANCELLED: keek.CallCancelledError,
    grpc.StatusCode.UNIMPLEMENTED: keek.UnimplementedError,
    grpc.StatusCode.INTERNAL: keek.InternalError,
    grpc.StatusCode.UNKNOWN: keek.InternalError,
    grpc.StatusCode.DATA_LOSS: keek.InternalError,
}


def _rpc_error(
    code: grpc.StatusCode, details: bytes | None = None, message: str | None = "told"
) -> grpc.aio.AioRpcError:
    trailing = grpc.aio.Metadata(("other", "text"))
    if details is not None:
        trailing.add("grpc-status-details-bin", details)
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, message)


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_status_has_its_class_or_is_a_plain_call_error(code: grpc.StatusCode) -> None:
    error = from_rpc_error(_rpc_error(code))
    assert type(error) is CLASSES.get(code, keek.CallError)
    assert isinstance(error, keek.KeekError)
    assert (error.code, error.message, str(error)) == (code, "told", f"{code.name}: told")


def test_all_standard_details_of_one_status_are_read() -> None:
    status = status_pb2.Status(code=14, message="told")
    info = error_details_pb2.ErrorInfo(reason="TRITON_DOWN", domain="keek", metadata={"part": "triton"})
    violation = error_details_pb2.BadRequest.FieldViolation(field="a.b", description="wrong")
    retry = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=2, nanos=250_000_000))
    unknown = error_details_pb2.Help(links=[error_details_pb2.Help.Link(url="https://example.org")])
    for detail in (unknown, info, error_details_pb2.BadRequest(field_violations=[violation]), retry):
        status.details.add().Pack(detail)
    error = from_rpc_error(_rpc_error(grpc.StatusCode.UNAVAILABLE, status.SerializeToString()))
    assert error.reason == "TRITON_DOWN"
    assert error.details == keek.ErrorDetails(
        reason="TRITON_DOWN",
        domain="keek",
        metadata={"part": "triton"},
        violations=(keek.FieldViolation("a.b", "wrong"),),
        retry_after_s=2.25,
    )


def test_a_delay_of_zero_is_not_the_same_as_none() -> None:
    status = status_pb2.Status()
    status.details.add().Pack(error_details_pb2.RetryInfo())
    error = from_rpc_error(_rpc_error(grpc.StatusCode.UNAVAILABLE, status.SerializeToString()))
    assert error.details.retry_after_s == 0.0


@pytest.mark.parametrize("details", [b"", b"\xff\xff\xff", b"\x1a\x7f"])
def test_unreadable_details_do_not_hide_the_error(details: bytes) -> None:
    error = from_rpc_error(_rpc_error(grpc.StatusCode.NOT_FOUND, details))
    assert isinstance(error, keek.NotFoundError)
    assert (error.message, error.details) == ("told", keek.ErrorDetails())


def test_an_error_without_a_message_has_an_empty_one() -> None:
    assert from_rpc_error(_rpc_error(grpc.StatusCode.NOT_FOUND, message=None)).message == ""


def test_errors_survive_pickling_between_processes() -> None:
    details = keek.ErrorDetails("BAD", "keek", {"a": "b"}, (keek.FieldViolation("f", "d"),), 1.5)
    error = keek.InvalidArgumentError(grpc.StatusCode.INVALID_ARGUMENT, "told", details)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is keek.InvalidArgumentError
    assert (copy.code, copy.message, copy.details) == (error.code, error.message, error.details)


def test_the_tree_in_the_docstring_names_every_error() -> None:
    import keek.errors

    classes = {
        name
        for name, value in vars(keek.errors).items()
        if isinstance(value, type) and issubclass(value, keek.KeekError) and not name.startswith("_")
    }
    assert keek.errors.__doc__ is not None
    assert classes <= set(keek.errors.__doc__.split())
    assert classes <= set(keek.__all__)
