"""Definitions of experiments as files for Git.

A file has the names of `ExperimentDefinition` in proto/keek/v1/experiment_service.proto, and
`overrides` may be a mapping from users to arms. What `ParseDict` would let pass is refused: a
mistake in a file is not to become an experiment that is a little different.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import ParseDict, ParseError

from keek.cli.documents import BadDocumentError, load
from keek.v1 import rules_pb2
from keek.v1.experiment_service_pb2 import ExperimentDefinition

_TYPES: Final[Mapping[int, tuple[tuple[type, ...], str]]] = {
    FieldDescriptor.CPPTYPE_STRING: ((str,), "text"),
    FieldDescriptor.CPPTYPE_DOUBLE: ((int, float), "a number"),
    FieldDescriptor.CPPTYPE_INT32: ((int,), "a whole number"),
    FieldDescriptor.CPPTYPE_BOOL: ((bool,), "true or false"),
}
"""What the values of a field are, and what they are called."""


def read_definition(path: Path) -> ExperimentDefinition:
    """The experiment that a YAML or JSON file defines.

    Raises:
        OSError: The file cannot be read.
        BadDocumentError: It defines none; every place that is wrong is named.
    """
    content = load(path)
    problems = list(_definition_problems(content))
    if problems or not isinstance(content, dict):
        raise BadDocumentError(f"{path}: {'; '.join(problems)}")
    overrides = content.get("overrides")
    if isinstance(overrides, dict):
        content["overrides"] = [{"user_id": user, "arm": arm} for user, arm in overrides.items()]
    try:
        return ParseDict(content, ExperimentDefinition())
    # Numbers that are too large, and text that is no Unicode.
    except (ParseError, OverflowError) as error:
        raise BadDocumentError(f"{path}: {' '.join(str(error).split())}") from error


def _definition_problems(content: object) -> Iterator[str]:
    if isinstance(content, dict) and isinstance(overrides := content.get("overrides"), dict):
        yield from _override_problems(overrides)
        content = {name: value for name, value in content.items() if name != "overrides"}
    yield from _message_problems(content, ExperimentDefinition.DESCRIPTOR, "")


def _override_problems(overrides: Mapping[object, object]) -> Iterator[str]:
    for user, arm in overrides.items():
        place = f"overrides.{user}"
        if not isinstance(user, str):
            yield f"{place}: the user must be text, not {_shown(user)}: put it in quotes"
        yield from _scalar_problems(arm, (str,), "text", place)


def _message_problems(value: object, descriptor: Descriptor, place: str) -> Iterator[str]:
    """What keeps `value` from being a message of this type, each with its place."""
    if not isinstance(value, dict):
        yield f"{place or 'the file'}: must be a mapping, not {_shown(value)}"
        return
    prefix = f"{place}." if place else ""
    for name in value:
        if name not in descriptor.fields_by_name:
            known = ", ".join(descriptor.fields_by_name)
            yield f"{prefix}{name}: is not known; there are {known}"
    for field in descriptor.fields:
        if field.name in value:
            yield from _field_problems(value[field.name], field, prefix + field.name)
        elif _is_required(field):
            yield f"{prefix}{field.name}: is missing"


def _is_required(field: FieldDescriptor) -> bool:
    """Of a repeated field the rule is about its elements."""
    return field.GetOptions().Extensions[rules_pb2.rules].required and not field.is_repeated


def _field_problems(value: object, field: FieldDescriptor, place: str) -> Iterator[str]:
    if not field.is_repeated:
        yield from _value_problems(value, field, place)
    elif isinstance(value, list):
        for number, element in enumerate(value):
            yield from _value_problems(element, field, f"{place}[{number}]")
    else:
        yield f"{place}: must be a list, not {_shown(value)}"


def _value_problems(value: object, field: FieldDescriptor, place: str) -> Iterator[str]:
    if field.message_type is not None:
        yield from _message_problems(value, field.message_type, place)
    else:
        yield from _scalar_problems(value, *_TYPES[field.cpp_type], place)


def _scalar_problems(value: object, types: tuple[type, ...], name: str, place: str) -> Iterator[str]:
    # Exactly: a truth value is an int as well. No JSON, and no bound of the contract, has NaN.
    if type(value) not in types or (isinstance(value, float) and not math.isfinite(value)):
        # In YAML, `no`, 007 and 2026-01-01 are no text.
        quotes = ": put it in quotes" if str in types and not isinstance(value, dict | list | None) else ""
        yield f"{place}: must be {name}, not {_shown(value)}{quotes}"


def _shown(value: object) -> str:
    if value is None:
        return "empty"
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return json.dumps(value, ensure_ascii=False, default=str)
