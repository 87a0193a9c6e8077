"""Texts on which tokenizers disagree first, if they do."""

from collections.abc import Iterable

# Everything that pre-tokenizers tell apart: kinds of letters, marks, digits, spaces and signs.
_PIECES = (
    *("It's we'll I'M they'RE don’t 'tis ''s", "'S'T'Re'vE'm'lL'd", "rock'n'roll o'clock"),
    *("x = foo_bar[1:]+baz->qux();//!?", "#!/usr/bin/env --a-b=c", "$£€¥₿ %‰ §¶ ©®™ °±×÷"),
    *(
        "https://example.org/a?b=c&d=%20#e",
        "a@b.example",
        "C:\\dir\\file.txt",
        "<p class='x'>&nbsp;",
    ),
    *("0 1 12 123 1234 12345 1234567890", "3.14 1,000,000 1e-9 0xFF 1st", "½ ² ³ ₄ Ⅷ ٣٤ ४२ ５６"),
    *("camelCase PascalCase HTTPServer SCREAMING_CASE iPhone", "ǅ ǈ ŉ ß ẞ ſ ﬁ İ ı Σ ς"),
    *(
        "naïve café résumé",
        "nai\u0308ve cafe\u0301",
        "\u0301start",
        "a\u0301\u0302\u0303\u0304b",
        "e\u0301" * 30,
    ),
    *(
        "Привет, мир! Ёлка",
        "Γειά σου Κόσμε ᾳ ΐ",
        "שָׁלוֹם עֲלֵיכֶם",
        "السَّلامُ عليكم ١٢٣",
        "नमस्ते दुनिया क्षि",
    ),
    *("สวัสดีชาวโลก กำ", "Xin chào Tiếng Việt", "வணக்கம் உலகம்", "გამარჯობა", "አማርኛ", "བོད་སྐད", "មនុស្ស"),
    *(
        "今天天气很好，我们去公园吧。",
        "“你好”——他说：《红楼梦》！",
        "繁體中文與臺灣",
        "数字１２３和ＡＢＣ全角（括号）",
    ),
    *(
        "日本語のテキスト、カタカナとひらがな。",
        "ﾊﾝｶｸ ｶﾞ が が",
        "한국어 텍스트",
        "\u1112\u1161\u11ab글",
        "𠮷野家 𪚥 㐀",
    ),
    *("豈更車 ﾡ ㎏ ㍿ ①Ⓐ", "Ω Å K", "\u0344 \u0958 \u2126 \ufb1d"),
    *(
        "😀😃 👍🏽 👨‍👩‍👧‍👦 🇨🇳🇺🇸 ❤️ ☺ 1️⃣",
        "🏴\U000e0067\U000e0062\U000e007f",
        "♥ ♪ ✓ → ∀∃∈ ∑ √ ≤ ░▒▓ ┌─┐",
    ),
    *("𝒜𝓫𝕮 𝟘𝟙", "\U0001f9d1\u200d\U0001f4bb", "\ue000\uf8ff", "\ufffd\ufffe\uffff\U0010ffff"),
    *("\ufeffbom", "a\u200bb\u200cc\u200dd\u2060e\u00adf", "\u202aleft\u202e right\u2066x\u2069"),
    *("\x00", "a\x00b\x01\x02\x1b[0m\x7f\x80\x9f", "".join(map(chr, range(1, 32)))),
    *(
        "\t",
        " ",
        "  ",
        "   ",
        "    x",
        "x    ",
        "\n",
        "\n\n\n",
        "\r\n\r\n",
        "\r",
        " \n",
        "\n ",
        " \n \n  x",
    ),
    *(
        "a\tb\t\tc",
        "\t\tx",
        "x \t",
        "a\u00a0b\u00a0\u00a0c",
        "\u3000全角\u3000\u3000空格",
        "a\u2003b\u2028c\u2029d\u0085e",
    ),
    *("a\x0bb\x0cc\x1cd\x1fe", "!\n\n?", ")\r\n  }", "word.\n\n\n  Next", "...\n", "  \t\n\t  "),
    *(
        "a" * 300,
        "ab" * 400,
        " " * 300,
        "\n" * 100,
        "." * 200,
        "1" * 100,
        "-=" * 120,
        "字" * 200,
        "é" * 150,
    ),
    *(
        "of the and to in is it that was for on are as with his they at be this from",
        "THE AND",
        "The And",
    ),
)


def hard_texts(added_tokens: Iterable[str]) -> list[str]:
    """The fixed texts, each alone and within others, and the tokenizer's own added tokens."""
    texts = [*_PIECES, " ".join(_PIECES), "".join(_PIECES), "\n".join(reversed(_PIECES))]
    texts += [f" {piece}" for piece in _PIECES] + [f"x{piece}9" for piece in _PIECES]
    for token in added_tokens:
        half = token[: max(1, len(token) // 2)]
        texts += [token, f"a{token}b", f" {token} \n{token}{token}", f"{half}{token}{half} x"]
        texts += [token.upper(), token.lower(), f"1\t{token}\n\n 字{token}字"]
    return texts
