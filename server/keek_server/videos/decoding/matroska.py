"""Claims of Matroska and WebM files (RFC 9559, EBML elements). Their duration FFmpeg gives."""

from collections.abc import Iterator
from typing import NamedTuple

from keek_server.videos.decoding.claims import Claims, Reader

_SEGMENT = 0x18538067
_TRACKS, _TRACK, _VIDEO = 0x1654AE6B, 0xAE, 0xE0
_WIDTH, _HEIGHT = 0xB0, 0xBA
_PARENTS = {_SEGMENT, _TRACKS, _TRACK, _VIDEO}
_MAX_DEPTH = 6


class _Element(NamedTuple):
    kind: int
    body: int
    size: int | None
    """None when it goes on until something follows that it cannot hold, as live recordings do."""


def matroska_claims(reader: Reader) -> Claims:
    """Reads the elements that lead to the sizes of pictures, and notes where others should end."""
    claims = Claims()
    _read(reader, 0, reader.size_bytes, claims, depth=0)
    return claims


def _read(reader: Reader, start: int, end: int, claims: Claims, *, depth: int) -> None:
    for element in _elements(reader, start, end):
        body_end = reader.size_bytes if element.size is None else element.body + element.size
        claims.ends_early |= body_end > reader.size_bytes
        if element.kind in _PARENTS and depth < _MAX_DEPTH:
            _read(reader, element.body, min(body_end, end), claims, depth=depth + 1)
        elif element.kind in (_WIDTH, _HEIGHT) and element.size:
            pixels = int.from_bytes(reader.at(element.body, min(element.size, 8)), "big")
            claims.picture(*((pixels, 0) if element.kind == _WIDTH else (0, pixels)))


def _elements(reader: Reader, start: int, end: int) -> Iterator[_Element]:
    position = start
    while position < end:
        head = reader.at(position, 12)
        kind, kind_length = _number(head, keep_marker=True)
        size, size_length = _number(head[kind_length:], keep_marker=False)
        if not kind_length or not size_length:
            return
        body = position + kind_length + size_length
        unknown = size == (1 << 7 * size_length) - 1
        yield _Element(kind, body, None if unknown else size)
        if unknown:
            return
        position = body + size


def _number(head: bytes, *, keep_marker: bool) -> tuple[int, int]:
    """A number whose first byte's leading zeros say its length; that length, or 0 when there is none."""
    if not head or not head[0]:
        return 0, 0
    length = 9 - head[0].bit_length()
    if len(head) < length:
        return 0, 0
    value = int.from_bytes(head[:length], "big")
    return (value if keep_marker else value & ((1 << 7 * length) - 1)), length
