"""How a refused file reaches the client."""

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status

from keek_server.errors import BadMediaError, MediaProblem
from keek_server.rpc.status import DETAILS_KEY, to_status


@pytest.mark.parametrize("reason", list(MediaProblem))
def test_the_reason_is_in_the_error_info_and_the_sentence_at_the_field(reason: MediaProblem) -> None:
    code, message, trailers = to_status(BadMediaError(reason, "its end is missing", field="chunk"))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message == "chunk: its end is missing"
    status, info, request = Status(), ErrorInfo(), BadRequest()
    status.ParseFromString(bytes(dict(trailers)[DETAILS_KEY]))
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(request)
    assert info.reason == reason.name
    assert [(v.field, v.description) for v in request.field_violations] == [("chunk", "its end is missing")]
