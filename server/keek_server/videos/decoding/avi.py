"""Claims of AVI files (RIFF chunks)."""

from keek_server.videos.decoding.claims import Claims, Reader

_MAIN_HEADER_SEARCH_BYTES = 4096


def avi_claims(reader: Reader) -> Claims:
    """Reads where the RIFF chunk should end, and the main header."""
    claims = Claims()
    head = reader.at(0, _MAIN_HEADER_SEARCH_BYTES)
    claims.ends_early = 8 + _number(head, 4) > reader.size_bytes
    at = head.find(b"avih") + 8
    if at >= 8 and at + 40 <= len(head):
        frame_us, frames = _number(head, at), _number(head, at + 16)
        claims.duration_s = frame_us * frames / 1e6
        claims.picture(_number(head, at + 32), _number(head, at + 36))
    return claims


def _number(head: bytes, at: int) -> int:
    return int.from_bytes(head[at : at + 4], "little")
