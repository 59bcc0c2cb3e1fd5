"""Claims of MPEG transport streams (ISO/IEC 13818-1): none but that packets are whole."""

from keek_server.videos.decoding.claims import Claims, Reader

_PACKET = 188
_TIMED_PACKET = 192
_SYNC = b"\x47"


def transport_stream_claims(reader: Reader) -> Claims:
    """A packet that breaks off is all that tells a cut stream from a shorter one."""
    length = _PACKET if reader.at(0, 1) == _SYNC else _TIMED_PACKET
    return Claims(ends_early=reader.size_bytes % length != 0)
