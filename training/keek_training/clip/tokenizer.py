"""open-clip's tokenizer as a file that the server reads, compared with the original."""

from typing import Any, Final

import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from keek_server.errors import SetupError
from keek_server.towers import clip_tokens
from keek_server.towers.clip_record import ClipRecord

PAD_TOKEN: Final = 0
"""What open-clip fills up with; also the token of `!`, but behind a text's end nothing reads it."""

_WORDS: Final = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


def convert_tokenizer(original: Any) -> Tokenizer:
    """open-clip's SimpleTokenizer for the library `tokenizers`: byte-level BPE that marks where words
    end, in lower case, with start and end, cut and padded to the context.
    """
    names = {number: token for token, number in original.encoder.items()}
    start, end = names[original.sot_token_id], names[original.eot_token_id]
    tokenizer = Tokenizer(
        models.BPE(vocab=dict(original.encoder), merges=list(original.bpe_ranks), end_of_word_suffix="</w>")
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        special_tokens=[(start, original.sot_token_id), (end, original.eot_token_id)],
    )
    tokenizer.enable_truncation(original.context_length)
    tokenizer.enable_padding(pad_id=PAD_TOKEN, pad_token=names[PAD_TOKEN], length=original.context_length)
    return tokenizer


def compare_tokenizers(
    original: Any, own: clip_tokens.Tokenizer, record: ClipRecord, texts: list[str]
) -> None:
    """Checks that the server will read every text as open-clip does.

    Raises:
        SetupError: The first text that it would not.
    """
    for text, row in zip(texts, original(texts).numpy(), strict=True):
        expected = np.full(record.context_length, record.pad_token, np.int32)
        tokens = own.tokens(text)
        expected[: len(tokens)] = tokens
        if not np.array_equal(expected, row):
            raise SetupError(
                f"the converted tokenizer reads {text[:60]!r} as {tokens[:12].tolist()}..., "
                f"open-clip as {row[:12].tolist()}..."
            )
