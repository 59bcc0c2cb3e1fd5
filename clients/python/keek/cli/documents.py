"""Files that hold one document, in JSON or in YAML.

PyYAML is imported when a YAML file is read, and not before: the client does not need it.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


class BadDocumentError(Exception):
    """A file does not hold what it should; the message names it, and the place in it."""


def load(path: Path) -> object:
    """What a file holds: mappings, lists, text, numbers and so on.

    A name that ends in `.json` is JSON; every other one is YAML.

    Raises:
        OSError: It cannot be read.
        BadDocumentError: It is no such document, a name stands in it twice, or PyYAML is missing.
    """
    try:
        # With or without a byte order mark.
        text = path.read_text("utf-8-sig")
        if path.suffix.lower() == ".json":
            return json.loads(text, object_pairs_hook=_mapping)
        return _load_yaml(text)
    # JSON's errors are ValueErrors, and so is what bytes, numbers and dates raise that are none.
    except ValueError as error:
        raise BadDocumentError(f"{path}: {error}") from error
    except RecursionError:
        raise BadDocumentError(f"{path}: is nested too deeply") from None


def _refuse_repetition(names: Iterable[str]) -> None:
    """Of a name that stands twice, as after a careless merge, the last would win silently."""
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{twice[0]!r} stands twice in one mapping")


def _mapping(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    _refuse_repetition(name for name, _ in pairs)
    return dict(pairs)


def _load_yaml(text: str) -> object:
    try:
        import yaml
    except ImportError as error:
        raise ValueError(f"YAML needs PyYAML: pip install 'keek[yaml]' ({error})") from error

    class Loader(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
            # Before `<<` brings in the names of other mappings, which may be given other values.
            node = super().compose_mapping_node(anchor)
            _refuse_repetition(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            return node

    try:
        loaded: object = yaml.load(text, Loader)  # noqa: S506 - it is a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{place}{error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    return loaded
