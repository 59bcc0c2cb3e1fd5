"""Texts to the tokens that CLIP reads, as open-clip makes them, without open-clip."""

import html
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import tokenizers

from keek_server.errors import SetupError
from keek_server.towers.clip_record import TOKENIZER_FILE, ClipRecord
from keek_server.towers.features import Int32Array

_MAX_CHARACTERS: Final = 4096
"""Of a text that are read; the context is full long before."""

_LIGATURES = (*range(0xFB00, 0xFB07), *range(0x0132, 0x0134), 0x0149, *range(0x01C4, 0x01CD))
_WIDE = (0x3000, *range(0xFF01, 0xFFF0))
_CONTROLS = (
    *range(0x09),
    0x0B,
    *range(0x0E, 0x20),
    0x7F,
    *range(0x206A, 0x2070),
    0xFEFF,
    *range(0xFFF9, 0xFFFD),
)
# The part of ftfy's mending that ordinary texts meet; what it also does is undoing wrong decoding.
_MENDED: Final[dict[int, str]] = (
    {code: unicodedata.normalize("NFKC", chr(code)) for code in (*_LIGATURES, *_WIDE)}
    | dict.fromkeys((0x02BC, *range(0x2018, 0x201C)), "'")
    | dict.fromkeys(range(0x201C, 0x2020), '"')
    | dict.fromkeys(_CONTROLS, "")
)


def clean(text: str) -> str:
    """A text as CLIP was trained on texts: entities resolved, quotes straight, spaces single, lower case.

    open-clip also repairs texts that were decoded with a wrong character set, which this does not.
    """
    # Entities may stand in entities; quotes are made straight before the last of them.
    if "<" not in text:
        text = html.unescape(text)
    text = unicodedata.normalize("NFC", text.translate(_MENDED))
    text = html.unescape(html.unescape(text))
    return " ".join(text.split()).lower()


class Tokenizer:
    """Makes tokens; safe to share."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, record: ClipRecord) -> None:
        if record.dynamic_length:
            tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._pad_token = record.pad_token

    @classmethod
    def open(cls, folder: Path, record: ClipRecord) -> "Tokenizer":
        """Reads what lies beside the record in `folder`.

        Raises:
            SetupError: When there is none, or it cannot be read.
        """
        path = folder / TOKENIZER_FILE
        try:
            content = path.read_text("utf-8")
            return cls(tokenizers.Tokenizer.from_str(content), record)
        except Exception as error:  # tokenizers raises no class of its own
            raise SetupError(f"{path} is no tokenizer: {error}") from error

    def tokens(self, text: str) -> Int32Array:
        """The tokens of one text, start and end included: int32 [length].

        A text that is too long is cut, and keeps its end. Nothing that is written in a text becomes
        a start or an end; open-clip reads `<end_of_text>` as one.
        """
        return np.asarray(self._tokenizer.encode(clean(text[:_MAX_CHARACTERS])).ids, np.int32)

    def padded(self, rows: Sequence[Int32Array]) -> Int32Array:
        """Tokens of several texts as one batch: int32 [n, longest]."""
        batch = np.full((len(rows), max(len(row) for row in rows)), self._pad_token, np.int32)
        for target, row in zip(batch, rows, strict=True):
            target[: len(row)] = row
        return batch
