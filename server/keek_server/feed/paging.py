"""Page tokens: opaque, bound to the user, carrying the release and what was served."""

import base64
import binascii
import struct
import zlib
from dataclasses import dataclass

from keek_server.errors import InvalidArgumentError
from keek_server.retrieval.ids import hash_id

SESSION_LIMIT = 1000
"""Videos that one session may serve: what a token has room for. Then the feed ends."""

_HEADER = struct.Struct("<BQB")  # format, hash of the user's id, length of the release id
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class PageToken:
    """Where a session stands."""

    user_id: str
    release_id: str
    """The release that served the page before."""
    served: tuple[int, ...]
    """Hashes of the videos on all pages before."""

    def encode(self) -> str:
        """The token as it travels."""
        release = self.release_id.encode()
        body = _HEADER.pack(_FORMAT, hash_id(self.user_id), len(release)) + release
        body += struct.pack(f"<{len(self.served)}Q", *self.served)
        return base64.urlsafe_b64encode(body + struct.pack("<I", zlib.crc32(body))).decode()

    @classmethod
    def decode(cls, token: str, user_id: str) -> "PageToken":
        """Reads a token that a page for `user_id` gave.

        Raises:
            InvalidArgumentError: When it is damaged, no page gave it, or it belongs to another user.
        """
        try:
            raw = base64.b64decode(token, altchars=b"-_", validate=True)
            body, (checksum,) = raw[:-4], struct.unpack("<I", raw[-4:])
            if zlib.crc32(body) != checksum:
                raise InvalidArgumentError.of("page_token", "is damaged")
            format_, user_hash, length = _HEADER.unpack_from(body)
            release_id = body[_HEADER.size : _HEADER.size + length].decode()
            served_bytes = body[_HEADER.size + length :]
            served = struct.unpack(f"<{len(served_bytes) // 8}Q", served_bytes)
        except (binascii.Error, struct.error, ValueError) as error:
            raise InvalidArgumentError.of("page_token", "is not a token of this service") from error
        if format_ != _FORMAT or user_hash != hash_id(user_id):
            raise InvalidArgumentError.of("page_token", "belongs to another user or version")
        if len(served) >= SESSION_LIMIT:
            # Anybody can make a checksum, and the page behind it would have no slots, or less than none.
            raise InvalidArgumentError.of("page_token", "is not a token of this service")
        return cls(user_id, release_id, served)
