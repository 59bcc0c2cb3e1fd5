"""What the server does to texts before CLIP reads them, and that it needs neither torch nor open-clip."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from clip_records import RECORD
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers

from keek_server.errors import SetupError
from keek_server.towers.clip_record import ClipRecord
from keek_server.towers.clip_tokens import Tokenizer, clean


def words(*known: str) -> Library:
    """A tokenizer of whole words, padded to six."""
    vocabulary = {word: number for number, word in enumerate(("pad", "start", "end", *known))}
    library = Library(models.WordLevel(vocabulary, unk_token="pad"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.enable_padding(length=6, pad_id=0)
    return library


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  A Photo\n of\ta\u00a0CAT ", "a photo of a cat"),
        ("Fish &amp;amp; chips &lt;3 &eacute;", "fish & chips <3 é"),
        ("&ldquo;so&rdquo; it&rsquo;s", '"so" it\'s'),
        ("\u201cso\u201d it\u2019s", '"so" it\'s'),
        ("cafe\u0301", "café"),
        ("\ufb01ne \uff26\uff35\uff2c\uff2c", "fine full"),
        ("a\x07b\ufeffc", "abc"),
        ("", ""),
    ],
)
def test_texts_are_cleaned_as_those_that_clip_was_trained_on(text: str, expected: str) -> None:
    assert clean(text) == expected


def test_texts_of_one_batch_are_padded_to_the_longest_of_them() -> None:
    tokenizer = Tokenizer(words("a", "cat"), RECORD)
    rows = [tokenizer.tokens(text) for text in ("a cat", "A", "a a cat")]
    np.testing.assert_array_equal(tokenizer.padded(rows), [[3, 4, 0], [3, 0, 0], [3, 3, 4]])
    assert tokenizer.padded(rows).dtype == np.int32


def test_texts_keep_their_padding_for_a_model_that_needs_it() -> None:
    tokenizer = Tokenizer(words("a", "cat"), RECORD.model_copy(update={"dynamic_length": False}))
    np.testing.assert_array_equal(tokenizer.tokens("a cat"), [3, 4, 0, 0, 0, 0])


def test_a_folder_without_clip_is_refused_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=f"no CLIP in {tmp_path}"):
        ClipRecord.load(tmp_path)
    with pytest.raises(SetupError, match=r"tokenizer\.json is no tokenizer"):
        Tokenizer.open(tmp_path, RECORD)


def test_a_record_that_says_something_else_is_refused(tmp_path: Path) -> None:
    RECORD.save(tmp_path)
    assert ClipRecord.load(tmp_path) == RECORD
    path = tmp_path / "clip.json"
    path.write_text(path.read_text().replace("bicubic", "random"))
    with pytest.raises(SetupError, match="does not describe a CLIP"):
        ClipRecord.load(tmp_path)


def test_the_server_imports_neither_torch_nor_open_clip() -> None:
    program = (
        "import sys, keek_server.app, keek_server.towers.clip, keek_training.publishing.publish\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'torch', 'open_clip', 'ftfy'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr


def test_without_torch_the_export_says_what_to_install() -> None:
    program = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "sys.argv = ['keek-train', 'export-clip']\n"
        "from keek_training.__main__ import main\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("keek-train: exporting CLIP needs the extra keek[clip]")
    assert done.stderr.count("\n") == 1
