"""How large the status of an error gets: gRPC takes 8 KiB of metadata, and no more than that for sure."""

import math
from collections.abc import Sequence
from urllib.parse import quote

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest
from google.rpc.status_pb2 import Status as StatusMessage

from keek_server.errors import FieldViolation, InvalidArgumentError, KeekError, NotFoundError, SetupError
from keek_server.rpc.status import DETAILS_KEY, to_status

LIMIT = 8192 - 256
"""Bytes; the rest is for the other entries, and for what gRPC counts for each."""


def sent(error: KeekError) -> tuple[str, Sequence[BadRequest.FieldViolation]]:
    """The message and the violations that a caller gets."""
    code, message, trailers = to_status(error)
    details = bytes(dict(trailers)[DETAILS_KEY])
    # Percent-encoded, and in base64.
    assert len(quote(message)) + math.ceil(len(details) / 3) * 4 <= LIMIT
    status, request = StatusMessage(), BadRequest()
    status.ParseFromString(details)
    assert status.message == message
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        assert status.details[1].Unpack(request)
    return message, request.field_violations


def broken(count: int, description: str) -> InvalidArgumentError:
    return InvalidArgumentError([FieldViolation(f"videos[{n}].language", description) for n in range(count)])


@pytest.mark.parametrize("description", ["is not a language", "не язык", "不是语言", "%%%"])
def test_of_many_violations_the_first_are_named_and_the_others_counted(description: str) -> None:
    message, violations = sent(broken(1000, description))
    fields = [violation.field for violation in violations]
    assert fields == [f"videos[{n}].language" for n in range(len(fields))]
    assert 40 < len(fields) < 200
    named, _, more = message.rpartition("; and ")
    parts = named.split("; ")
    assert parts == [f"videos[{n}].language: {description}" for n in range(len(parts))]
    assert len(parts) > 10
    assert more == f"{1000 - len(parts)} more"


def test_few_violations_are_all_named() -> None:
    message, violations = sent(broken(20, "is wrong"))
    assert message == str(broken(20, "is wrong"))
    assert [violation.description for violation in violations] == ["is wrong"] * 20


@pytest.mark.parametrize("character", ["x", "é", "不", "😀"])
def test_a_violation_that_is_absurdly_long_is_named_with_its_beginning(character: str) -> None:
    error = InvalidArgumentError(
        [FieldViolation(character * 9000, character * 9000), FieldViolation("b", "is wrong")]
    )
    message, violations = sent(error)
    assert violations[0].field.startswith(character * 100)
    assert violations[0].field.endswith("...")
    assert violations[0].description.startswith(character * 100)
    assert violations[0].description.endswith("...")
    assert message.startswith(character * 100)
    assert message.endswith("...; and 1 more")


@pytest.mark.parametrize("character", ["x", "é", "不", "😀", "%"])
@pytest.mark.parametrize("kind", [NotFoundError, SetupError])
def test_a_message_that_is_absurdly_long_is_cut(kind: type[KeekError], character: str) -> None:
    message, _ = sent(kind(character * 9000))
    assert message.startswith(character * 100)
    assert message.endswith("...")


def test_a_message_of_some_sentences_stays_whole() -> None:
    text = "Something is wrong. " * 30
    assert sent(NotFoundError(text))[0] == text
