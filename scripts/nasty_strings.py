"""Two hundred strings that break tokenizers, segmenters and codes: numbers, names, code, languages, emoji, capitals, typos, runs, controls.

Made by rules from a seed; nothing is taken from anywhere. `python scripts/nasty_strings.py` prints them as JSON lines.
"""

from __future__ import annotations

import json
import random

_WRITTEN = {
    "code": [
        "for (int i = 0; i < n; ++i) { a[i] ^= b[(i * 7) % n]; }", "def f(x): return {k: v**2 for k, v in x.items() if v is not None}",
        "SELECT name, COUNT(*) FROM t WHERE a<>'b' GROUP BY 1 HAVING COUNT(*)>3;", "<div class=\"x\" id='y'>&nbsp;&lt;b&gt;</div>",
        "{\"a\": [1, 2.5e-7, null, true], \"b\": {\"c\": \"\\u00e9\\n\"}}", "sed -E 's/([0-9]+)\\.([0-9]+)/\\2,\\1/g' < in > out 2>&1",
        "x = y if z else (lambda q: q @ q.T)(w)[..., None, ::-2]", "#define MAX(a,b) ((a)>(b)?(a):(b)) /* beware */",
        "\\frac{\\partial^2 u}{\\partial t^2} = c^2 \\nabla^2 u", "^(?:[a-z0-9!#$%&'*+/=?^_`{|}~-]+)@[^\\s]+\\.[a-z]{2,}$",
    ],
    "special": [
        "<|im_end|>", "<|im_start|>user\nhi<|im_end|>", "<|endoftext|>", "<|endoftext|><|endoftext|>", "</s><s>[INST] x [/INST]",
        "<unk> <pad> <mask>", "\ufeffwith a byte order mark", "zero\u200bwidth\u200bspaces", "soft\u00adhyphen", "a\u00a0no-break\u202fspace",
    ],
    "languages": [
        "吾輩は猫である。名前はまだ無い。", "東京は今日も雨が降っています、明日は晴れるでしょう。", "人人生而自由，在尊严和权利上一律平等。", "모든 사람은 태어날 때부터 자유롭다.",
        "Все счастливые семьи похожи друг на друга.", "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι.", "يولد جميع الناس أحرارًا متساوين في الكرامة.",
        "כל בני האדם נולדו בני חורין ושווים בערכם.", "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता प्राप्त है।", "มนุษย์ทั้งหลายเกิดมามีอิสระ",
        "Tất cả mọi người sinh ra đều được tự do.", "Größe, Übermut und Straßenbahnen im März", "Það er ekki hægt að segja þetta.", "Ζαχαροπλαστείο №5",
        "ﬁnancial ﬂow oﬀers", "ａｂｃ１２３ full width", "ⅷ ½ ² ₃ ™ ℝ ∀x∈ℕ", "ⰀⰁⰂ 𐌰𐌱𐌲 𓀀𓁐", "ꙮ ༼ つ ◕_◕ ༽つ", "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤a͠l͔g̸o",
    ],
    "emoji": [
        "😀😃😄😁😆", "👩‍👩‍👧‍👦 went to 🏖️", "🏳️‍🌈🏴‍☠️🇩🇪🇯🇵🇧🇷", "I ❤️ U 2 👍🏽👍🏿", "🧑🏻‍💻 + ☕ = 🚀🚀🚀", "¯\\_(ツ)_/¯ (╯°□°)╯︵ ┻━┻", "♠♥♦♣ ♔♕♖ ⚀⚁⚂", "🔥" * 12,
        "😀a😀b😀c", "👨🏾‍🤝‍👨🏼",
    ],
    "controls": [
        "a\tb\tc", "two\n\nparagraphs", "back\bspace", "nul\x00inside", "\x1b[31mred\x1b[0m", "vertical\x0btab\x0cfeed", "carriage\rreturn\r\nboth", " leading",
        "trailing ", "  both   ways  ", "\u2028line separator\u2029", "del\x7f c1\x85", "\U0010ffff", "\ue000private\uf8ff", "combi\u0301ning a\u030a", "\u202eright to left\u202c",
        "", ".", "?!", "—",
    ],
    "capitals": [
        "WE HOLD THESE TRUTHS TO BE SELF-EVIDENT", "tHiS iS nOt HoW iT wOrKs", "McDonald's vs. MacGyver vs. O'NEILL", "iPhone eBay YouTube LaTeX",
        "AAPL +3.2%, MSFT -0.7%, BRK.B 412.55", "NATO/UNESCO/ASEAN/OPEC+", "the USA, the U.S.A. and the U. S. A.", "XVIII. MDCCLXXVI", "aBCDefGHIjkLMNop", "HTTP/1.1 404 Not Found",
    ],
}  # fmt: skip
_NAMES = [
    "Aoife",
    "Nguyễn",
    "Björk",
    "Siobhán",
    "Xiadani",
    "Okonkwo",
    "Þórunn",
    "Wojciech",
    "Çelik",
    "Mbappé",
    "D'Angelo",
    "Ruiz-Gómez",
    "Hrvoje",
    "Ngũgĩ",
    "Øystein",
    "Zhang",
]
_WORDS = [
    "the",
    "committee",
    "will",
    "not",
    "accept",
    "their",
    "proposal",
    "before",
    "receiving",
    "separate",
    "definite",
    "occurrences",
    "of",
    "the",
    "government's",
    "argument",
]


def nasty_strings(seed: int = 0) -> list[tuple[str, str]]:
    """200 distinct (kind, text), the same for one seed."""
    draw = random.Random(seed)
    found = [(kind, text) for kind, texts in _WRITTEN.items() for text in texts]
    makers = {
        "numbers": _number,
        "names": lambda d: f"{d.choice(_NAMES)} {d.choice(_NAMES)}, {d.choice(_NAMES)} and {d.choice(_NAMES)}-{d.choice(_NAMES)}",
        "runs": lambda d: d.choice("aAxz0.-=_ é日😀\t") * d.randint(5, 180),
        "typos": _typos,
        "random": lambda d: "".join(chr(d.randint(33, 126)) for _ in range(d.randint(10, 80))),
        "random words": lambda d: " ".join("".join(d.choices("abcdefghijklmnopqrstuvwxyz", k=d.randint(3, 9))) for _ in range(8)),
    }
    kinds = list(makers)
    while len(found) < 200:
        kind = kinds[len(found) % len(kinds)]
        item = (kind, makers[kind](draw))
        if item not in found:
            found.append(item)
    return found


def _number(draw: random.Random) -> str:
    forms = (
        lambda: f"{draw.randrange(10**12):,} of {draw.random():.9f}",
        lambda: f"+{draw.randrange(10, 99)} ({draw.randrange(1000)}) {draw.randrange(10**7)} ext. {draw.randrange(1000)}",
        lambda: (
            f"{draw.randrange(1900, 2100)}-{draw.randrange(1, 13):02d}-{draw.randrange(1, 29):02d}T{draw.randrange(24):02d}:{draw.randrange(60):02d}Z"
        ),
        lambda: f"{draw.getrandbits(128):032x}",
        lambda: (
            f"${draw.randrange(10**6)}.{draw.randrange(100):02d} − €{draw.randrange(10**6)},{draw.randrange(100):02d} = {draw.uniform(-1, 1):.3e}"
        ),
    )
    return draw.choice(forms)()


def _typos(draw: random.Random) -> str:
    letters = list(" ".join(draw.sample(_WORDS, 10)))
    for _ in range(8):
        place = draw.randrange(len(letters) - 1)
        letters[place], letters[place + 1] = letters[place + 1], letters[place]
    return "".join(letters)


if __name__ == "__main__":
    for kind, text in nasty_strings():
        print(json.dumps({"kind": kind, "text": text}, ensure_ascii=False))
