"""Golden texts and pictures, on which the exported CLIP and open-clip must agree."""
# ruff: noqa: RUF001 - signs that look alike are what these texts are for

from typing import Final

import numpy as np
import numpy.typing as npt

_RANDOM_TEXTS: Final = 400
_EDGES: Final = (
    "",
    " ",
    "a",
    "!",
    "a photo of a cat",
    "A Photo   of\ta\nCAT",
    "It's what they'll say: we've won, I'm sure you'd've known, don't you?",
    "O'Neill's dogs' 'quoted' \"words\" ‘single’ “double” l’été ʼn",
    "#dance @user_name www.example.com/a?b=c&d=e 100% 3.14 1,000,000 $5 ½ ① ²",
    "café naïve coöperate Ångström jalapeño Łódź İstanbul straße ΣΑΣ Ωμέγα",
    "cafe\u0301 nai\u0308ve in two code points each",
    "日本語のテスト 中文测试 한국어 시험 ไทย नमस्ते दुनिया",
    "مرحبا بالعالم שלום עולם Привет, мир! Γειά σου Κόσμε",
    "😀😂🎉 👩‍👩‍👧‍👦 👍🏽 🇫🇷 ❤️ ☕️!!! (╯°□°)╯︵ ┻━┻",
    "Fish &amp; chips &lt;3 caf&eacute; &amp;amp; &#39;quoted&#39; &rsquo; AT&T &nbsp; &unknown;",
    "<b>bold</b> &amp; <i>it&rsquo;s</i> 5 < 6 > 4",
    "ﬁne ﬂuﬀy oﬃce ﬆ Ĳssel ǆ",
    "ＦＵＬＬ　ｗｉｄｔｈ　１２３！ ｶﾀｶﾅ",
    "zero\u200bwidth no\u00a0break soft\u00adhyphen bell\x07 bom\ufeff line\u2028separator",
    "under_score-hyphen–en—em…dots · • ™ © ® € £ ¥",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "x" * 1000,
    "word " * 200,
    "!?" * 300,
    "日本" * 100,
    "😀" * 90,
    "the end stands at the edge " * 15,
)
_ALPHABETS: Final = (
    "abcdefghijklmnopqrstuvwxyz",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "0123456789",
    "!\"#$%'()*+,-./:;=?@[\\]^_`{|}~",
    "абвгдежзийклмнопрстуфхцчшщъыьэюя",
    "αβγδεζηθικλμνξοπρστυφχψω",
    "あいうえおかきくけこさしすせそ日本語中文字",
    "가나다라마바사아자차카타파하",
    "😀😂🎉👍🔥💃🎸🐈🐕🌍",
)
_WORDS: Final = (
    *("a", "the", "of", "with", "in", "on", "and", "how", "to", "make", "my", "first", "best", "live"),
    *("dancing", "cat", "dog", "kitchen", "guitar", "sunset", "street", "football", "recipe", "tutorial"),
    *("café", "naïve", "señor", "über", "garçon", "smörgåsbord", "Łódź", "crème", "brûlée", "fiancé"),
    *("funny", "beautiful", "travel", "beach", "city", "music", "concert", "vlog", "time"),
)


def golden_texts(seed: int = 9) -> list[str]:
    """The edges and random texts of words, signs and many scripts, a few hundred in all.

    No accents at random: open-clip takes some of what comes out for wrongly decoded, and repairs it.
    """
    rng = np.random.default_rng(seed)
    return [*_EDGES, *(_random_text(rng) for _ in range(_RANDOM_TEXTS))]


def _random_text(rng: np.random.Generator) -> str:
    parts = []
    for _ in range(int(rng.integers(1, 16))):
        if rng.random() < 0.6:
            parts.append(str(rng.choice(_WORDS)))
        else:
            alphabet = list(_ALPHABETS[rng.integers(len(_ALPHABETS))])
            parts.append("".join(rng.choice(alphabet, int(rng.integers(1, 9)))))
    return str(rng.choice([" ", " ", ", ", ""])).join(parts)


def golden_pictures(count: int, size: int, seed: int = 10) -> npt.NDArray[np.uint8]:
    """Black, white, gradients and noise: uint8 [count, 3, size, size], count >= 4."""
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 256, (count, 3, size, size), np.uint8)
    pictures[0] = 0
    pictures[1] = 255
    ramp = np.linspace(0, 255, size).astype(np.uint8)
    pictures[2] = ramp
    pictures[3] = ramp[:, None]
    return pictures
