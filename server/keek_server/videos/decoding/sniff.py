"""Tells from the first bytes what a file is, so that FFmpeg never has to guess.

FFmpeg's own guess would let a text that names other files pass as a playlist. Only the demuxer
that is chosen here is ever run.
"""

from dataclasses import dataclass

from keek_server.errors import BadMediaError, MediaProblem

HEAD_BYTES = 1024
_TAKEN = "taken are MP4, MOV, WebM, Matroska, AVI and MPEG-TS"


@dataclass(frozen=True, slots=True)
class Container:
    """A kind of file that is taken."""

    extension: str
    demuxer: str
    """FFmpeg's name."""


_ATOMS = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp", b"pnot")
_STILL_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")
_SOUND = {
    b"ID3": "an MP3 sound file",
    b"\xff\xfb": "an MP3 sound file",
    b"\xff\xf1": "an AAC sound file",
    b"fLaC": "a FLAC sound file",
    b"MThd": "a MIDI file",
}
_OTHER_VIDEO = {
    b"FLV\x01": "Flash Video",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": "Windows Media",
    b"OggS": "Ogg",
    b"\x00\x00\x01\xba": "an MPEG program stream",
    b"\x00\x00\x01\xb3": "a bare MPEG stream",
    b"\x00\x00\x00\x01": "a bare video stream without a container",
    b"\x06\x0e\x2b\x34": "MXF",
    b".RMF": "RealMedia",
    b"DKIF": "IVF",
    b"YUV4MPEG2": "raw video",
    b"GIF8": "a GIF",
}
_NO_VIDEO = {
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89PNG": "a PNG image",
    b"PK\x03\x04": "an archive",
    b"\x1f\x8b": "an archive",
    b"%PDF": "a PDF document",
    b"#EXTM3U": "a playlist, which names other files",
    b"ffconcat": "a playlist, which names other files",
    b"[playlist]": "a playlist, which names other files",
    b"<?xml": "an XML document",
    b"<MPD": "a playlist, which names other files",
    b"<smil": "a playlist, which names other files",
}


def sniff_video(head: bytes, field: str = "content") -> Container:
    """
    Args:
        head: The file's first `HEAD_BYTES`, or all of a shorter one.
        field: What of the request it is, for the error.

    Raises:
        BadMediaError: It is no video in a container that is taken.
    """
    found = _sniff(head)
    if isinstance(found, Container):
        return found
    raise BadMediaError(*found, field=field)


def _sniff(head: bytes) -> Container | tuple[MediaProblem, str]:
    if not head.strip(b"\x00"):
        return MediaProblem.NOT_A_VIDEO, "it holds only zeros" if head else "it is empty"
    if container := _mp4(head) or _matroska(head) or _riff(head) or _transport_stream(head):
        return container
    if sound := _named(head, _SOUND) or (head[8:12] == b"WAVE" and "a WAVE sound file"):
        return MediaProblem.NO_VIDEO_STREAM, f"it is {sound}"
    if other := _named(head, _OTHER_VIDEO):
        return MediaProblem.UNSUPPORTED_FORMAT, f"it is {other}; {_TAKEN}"
    known = _still(head) or _named(head.lstrip(b"\xef\xbb\xbf \t\r\n"), _NO_VIDEO)
    return MediaProblem.NOT_A_VIDEO, f"it is {known or 'no video'}; {_TAKEN}"


def _still(head: bytes) -> str | None:
    """Images whose containers also hold videos or sound."""
    if head[8:12] == b"WEBP":
        return "a WebP image"
    return "a HEIF or AVIF image" if head[4:8] == b"ftyp" and head[8:12] in _STILL_BRANDS else None


def _named(head: bytes, names: dict[bytes, str]) -> str | None:
    return next((name for start, name in names.items() if head.startswith(start)), None)


def _mp4(head: bytes) -> Container | None:
    kind, brand = head[4:8], head[8:12]
    if kind not in _ATOMS or (kind == b"ftyp" and brand in _STILL_BRANDS):
        return None
    if brand.startswith(b"3g"):
        return Container("3gp", "mov")
    modern = kind in (b"ftyp", b"styp") and brand != b"qt  "
    return Container("mp4" if modern else "mov", "mov")


def _matroska(head: bytes) -> Container | None:
    if not head.startswith(b"\x1a\x45\xdf\xa3"):
        return None
    return Container("webm" if b"webm" in head[:80] else "mkv", "matroska")


def _riff(head: bytes) -> Container | None:
    return Container("avi", "avi") if head.startswith(b"RIFF") and head[8:11] == b"AVI" else None


def _transport_stream(head: bytes) -> Container | None:
    """Packets of 188 bytes, or of 192 with a time before each, begin with 0x47."""
    for first, step in ((0, 188), (4, 192)):
        starts = head[first : first + 4 * step : step]
        if len(starts) >= 3 and set(starts) == {0x47}:
            return Container("ts", "mpegts")
    return None
