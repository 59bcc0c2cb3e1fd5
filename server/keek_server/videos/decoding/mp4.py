"""Claims of MP4 and MOV files (ISO/IEC 14496-12, boxes)."""

from collections.abc import Iterator, Set
from typing import NamedTuple

from keek_server.videos.decoding.claims import Claims, Reader

_PARENTS = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"mvex", b"dinf"}
_UNKNOWN = {0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF}
_TOP = {
    *(b"ftyp", b"moov", b"mdat", b"moof", b"mfra", b"styp", b"sidx", b"ssix", b"emsg", b"prft", b"pdin"),
    *(b"free", b"skip", b"wide", b"pnot", b"uuid", b"udta", b"meta", b"imda"),
}
"""Boxes outside of others. What cameras append behind the last may look like a box, too."""
_MAX_DEPTH = 8
_IN_THIS_FILE = b"\x01"
_VIDEO_ENTRIES = {
    *(b"avc1", b"avc2", b"avc3", b"hvc1", b"hev1", b"dvh1", b"dvhe", b"vp08", b"vp09", b"av01"),
    *(b"mp4v", b"s263", b"jpeg", b"mjpa", b"mjpb", b"png ", b"apcn", b"apch", b"apcs", b"apco", b"ap4h"),
}


class _Box(NamedTuple):
    kind: bytes
    body: int
    """Where it begins."""
    end: int


def mp4_claims(reader: Reader) -> Claims:
    """Reads the boxes that hold boxes, and of the others the few that claim something."""
    claims = Claims()
    boxes = list(_boxes(reader, 0, reader.size_bytes, claims, _TOP))
    claims.ends_early |= not any(box.kind == b"moov" for box in boxes)
    for box in boxes:
        if box.kind == b"moov":
            _read_parent(reader, box, claims, depth=1)
    return claims


def _boxes(
    reader: Reader, start: int, end: int, claims: Claims, known: Set[bytes] | None = None
) -> Iterator[_Box]:
    """Notes when a box goes on behind the end of the file, if it is one of the known, or any if None."""
    position = start
    while position + 8 <= end:
        head = reader.at(position, 16)
        size, kind, header = int.from_bytes(head[:4], "big"), head[4:8], 8
        if size == 1:
            size, header = int.from_bytes(head[8:16], "big"), 16
        elif size == 0:
            size = end - position
        if size < header or not kind.isascii():
            return  # What follows is no box; some programs leave padding behind the last.
        if known is None or kind in known:
            claims.ends_early |= position + size > reader.size_bytes
        yield _Box(kind, position + header, min(position + size, end))
        position += size


def _read_parent(reader: Reader, parent: _Box, claims: Claims, *, depth: int) -> None:
    for box in _boxes(reader, parent.body, parent.end, claims):
        if box.kind in _PARENTS and depth < _MAX_DEPTH:
            _read_parent(reader, box, claims, depth=depth + 1)
        elif box.kind in (b"mvhd", b"mdhd"):
            claims.duration_s = max(claims.duration_s, _duration_s(reader.at(box.body, 32)))
        elif box.kind == b"tkhd":
            claims.picture(*_track_size(reader.at(box.body, 96)))
        elif box.kind == b"dref":
            claims.elsewhere |= any(
                reader.at(entry.body, 4)[3:] != _IN_THIS_FILE
                for entry in _boxes(reader, box.body + 8, box.end, claims)
            )
        elif box.kind == b"stsd":
            _read_entries(reader, box, claims)


def _duration_s(body: bytes) -> float:
    """Of a movie or media header: times, timescale, duration; wider ones in version 1."""
    wide = body[:1] == b"\x01"
    scale, length = (20, 8) if wide else (12, 4)
    timescale = int.from_bytes(body[scale : scale + 4], "big")
    duration = int.from_bytes(body[scale + 4 : scale + 4 + length], "big")
    return 0.0 if duration in _UNKNOWN or not timescale else duration / timescale


def _track_size(body: bytes) -> tuple[int, int]:
    """Of a track header: the last two numbers, 16.16 fixed point."""
    at = 88 if body[:1] == b"\x01" else 76
    return int.from_bytes(body[at : at + 2], "big"), int.from_bytes(body[at + 4 : at + 6], "big")


def _read_entries(reader: Reader, box: _Box, claims: Claims) -> None:
    """Sample descriptions; only those of video have a size, which the handler would tell apart.

    Of other tracks the same bytes are part of something else, so sizes count where the entry is
    named like a video codec's in a track whose header has a size.
    """
    if not claims.width:
        return
    for entry in _boxes(reader, box.body + 8, box.end, claims):
        if entry.kind in _VIDEO_ENTRIES:
            body = reader.at(entry.body, 32)
            claims.picture(int.from_bytes(body[24:26], "big"), int.from_bytes(body[26:28], "big"))
