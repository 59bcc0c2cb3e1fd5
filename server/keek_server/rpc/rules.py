"""Enforces the field rules that the contract declares (`proto/keek/v1/rules.proto`).

The rules of a message type are compiled once, from its descriptor, into a list of plain
functions; checking a request costs a few microseconds.
"""

import re
import sys
import time
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from keek.v1 import rules_pb2
from keek_server.errors import FieldViolation, InvalidArgumentError
from keek_server.videos.locales import LANGUAGE_PATTERN

CLOCK_ALLOWANCE_S = 300
"""How far ahead of the server's clock a time may be."""

_UUID = re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}")
_LANGUAGE = re.compile(LANGUAGE_PATTERN)
_TIMES = {Timestamp.DESCRIPTOR.full_name, Duration.DESCRIPTOR.full_name}
_LAST_SECOND = 253_402_300_799  # 9999-12-31T23:59:59Z, the last that a Timestamp may hold

Violations = list[FieldViolation]
_CheckValue = Callable[[Any, str, Violations], None]
_CheckMessage = Callable[[Message, str, Violations], None]


class RuleChecker:
    """Checks requests of any type against the rules of their fields."""

    def __init__(self) -> None:
        self._compiled: dict[str, _CheckMessage] = {}

    def check(self, message: Message) -> None:
        """
        Raises:
            InvalidArgumentError: Names every field that breaks a rule.
        """
        violations: Violations = []
        self._message(message.DESCRIPTOR)(message, "", violations)  # type: ignore[arg-type]  # upb's twin
        if violations:
            raise InvalidArgumentError(violations)

    def _message(self, descriptor: Descriptor) -> _CheckMessage:
        compiled = self._compiled.get(descriptor.full_name)
        if compiled is None:
            fields = [self._field(field) for field in descriptor.fields]
            checks = [check for check in fields if check is not None]

            def compiled(message: Message, path: str, out: Violations) -> None:
                for check in checks:
                    check(message, path, out)

            self._compiled[descriptor.full_name] = compiled
        return compiled

    def _field(self, field: FieldDescriptor) -> _CheckMessage | None:
        rules = field.GetOptions().Extensions[rules_pb2.rules]
        if field.message_type and field.message_type.full_name not in _TIMES:
            checks = [self._nested(field.message_type)]
        else:
            checks = [*_value_checks(field, rules)]
        if field.is_repeated:
            return _repeated(field.name, checks, rules)
        if field.has_presence:
            check_present = _singular(field.name, checks)
            if rules.HasField("only_where"):
                check_present = _only_where(field, rules.only_where, check_present)
            return _optional(field.name, check_present, required=rules.required)
        if rules.required:
            checks.insert(0, _required)
        return _singular(field.name, checks) if checks else None

    def _nested(self, descriptor: Descriptor) -> _CheckValue:
        check = self._message(descriptor)
        return lambda value, path, out: check(value, f"{path}.", out)


def _value_checks(field: FieldDescriptor, rules: rules_pb2.FieldRules) -> list[_CheckValue]:
    checks: list[_CheckValue] = []
    if field.type == FieldDescriptor.TYPE_STRING:
        checks.append(_text(rules.max_bytes or sys.maxsize))
    elif rules.max_bytes:
        checks.append(_max_bytes(rules.max_bytes))
    if field.enum_type:
        checks.append(_one_of(set(field.enum_type.values_by_number)))
    if rules.HasField("min") or rules.HasField("max"):
        low = rules.min if rules.HasField("min") else float("-inf")
        high = rules.max if rules.HasField("max") else float("inf")
        checks.append((_duration_between if field.message_type else _between)(low, high))
    if rules.uuid:
        checks.append(_uuid)
    if rules.language:
        checks.append(_language)
    if field.message_type and field.message_type.full_name == Timestamp.DESCRIPTOR.full_name:
        checks.append(_timestamp(not_future=rules.not_future))
    return checks


def _singular(name: str, checks: list[_CheckValue]) -> _CheckMessage:
    def check(message: Message, path: str, out: Violations) -> None:
        value = getattr(message, name)
        for check_value in checks:
            check_value(value, path + name, out)

    return check


def _optional(name: str, check_present: _CheckMessage, *, required: bool) -> _CheckMessage:
    def check(message: Message, path: str, out: Violations) -> None:
        if message.HasField(name):
            check_present(message, path, out)
        elif required:
            out.append(FieldViolation(path + name, "is required"))

    return check


def _only_where(
    field: FieldDescriptor, condition: rules_pb2.FieldRules.Condition, check_present: _CheckMessage
) -> _CheckMessage:
    assert field.containing_type is not None
    beside, name = field.containing_type.fields_by_name[condition.field].enum_type, field.name
    assert beside is not None
    allowed = {beside.values_by_name[value].number for value in condition.values}
    reason = f"goes with {' and '.join(condition.values)} alone"

    def check(message: Message, path: str, out: Violations) -> None:
        check_present(message, path, out)
        if getattr(message, condition.field) not in allowed:
            out.append(FieldViolation(path + name, reason))

    return check


def _repeated(name: str, checks: list[_CheckValue], rules: rules_pb2.FieldRules) -> _CheckMessage:
    limit, is_required = rules.max_items, rules.required

    def check(message: Message, path: str, out: Violations) -> None:
        values = getattr(message, name)
        if limit and len(values) > limit:
            out.append(
                FieldViolation(path + name, f"has {len(values)} elements, at most {limit} are allowed")
            )
            return
        for i, value in enumerate(values):
            before = len(out)
            check_element(value, "", out)
            if len(out) > before:
                # Once more, with its place: to spell that for elements in order would cost the most.
                del out[before:]
                check_element(value, f"{path}{name}[{i}]", out)

    def check_element(value: Any, path: str, out: Violations) -> None:
        if is_required and isinstance(value, str):
            _required(value, path, out)
        for check_value in checks:
            check_value(value, path, out)

    return check


def _required(value: Any, path: str, out: Violations) -> None:
    if not value:
        out.append(FieldViolation(path, "is required"))


def _text(limit: int) -> _CheckValue:
    check_size = _max_bytes(limit)

    def check(value: str, path: str, out: Violations) -> None:
        # PostgreSQL cannot store it.
        if "\0" in value:
            out.append(FieldViolation(path, "contains a NUL character"))
        # A character takes four bytes at most: the exact size is needed for few values.
        if len(value) * 4 > limit:
            check_size(value.encode(), path, out)

    return check


def _one_of(numbers: set[int]) -> _CheckValue:
    def check(value: int, path: str, out: Violations) -> None:
        if value not in numbers:
            out.append(FieldViolation(path, f"{value} is not a known value"))

    return check


def _max_bytes(limit: int) -> _CheckValue:
    def check(value: bytes, path: str, out: Violations) -> None:
        if len(value) > limit:
            out.append(FieldViolation(path, f"is {len(value)} bytes long, at most {limit} are allowed"))

    return check


def _between(low: float, high: float) -> _CheckValue:
    def check(value: float, path: str, out: Violations) -> None:
        if not low <= value <= high:  # NaN is between nothing
            out.append(FieldViolation(path, f"is {value:g}, must be between {low:g} and {high:g}"))

    return check


def _duration_between(low: float, high: float) -> _CheckValue:
    check_length = _between(low, high)

    def check(value: Duration, path: str, out: Violations) -> None:
        if abs(value.nanos) >= 1_000_000_000 or value.seconds * value.nanos < 0:
            out.append(FieldViolation(path, "is not a duration"))
        else:
            check_length(value.seconds + value.nanos / 1e9, path, out)

    return check


def _uuid(value: str, path: str, out: Violations) -> None:
    if value and not _UUID.fullmatch(value):
        out.append(FieldViolation(path, "is not a UUID"))


def _language(value: str, path: str, out: Violations) -> None:
    if value and not _LANGUAGE.fullmatch(value):
        out.append(FieldViolation(path, "is not a BCP 47 language tag"))


def _timestamp(*, not_future: bool) -> _CheckValue:
    def check(value: Timestamp, path: str, out: Violations) -> None:
        if not (0 <= value.seconds <= _LAST_SECOND and 0 <= value.nanos < 1_000_000_000):
            out.append(FieldViolation(path, "is not a time between 1970 and 9999"))
        elif not_future and value.seconds > time.time() + CLOCK_ALLOWANCE_S:
            out.append(FieldViolation(path, f"is more than {CLOCK_ALLOWANCE_S} s in the future"))

    return check
