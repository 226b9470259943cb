"""A thousand quotations with edits in a text of sixteen thousand tokens: found to the word, and none invented."""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest

from wim_kernel.text.locating import Locator, Place

COUNT = 1000
CHARACTERS = 64_000  # about 16,000 tokens of English

Edit = Callable[[random.Random, list[str]], list[str]]


@dataclass(frozen=True)
class Script:
    """A script to write a text in.

    Attributes:
        alphabet: the letters of its words; or its words, if it has no spaces.
        gap: what stands between two words.
        stop: what ends a sentence.
    """

    alphabet: str
    gap: str = " "
    stop: str = ". "

    def word(self, rng: random.Random) -> str:
        return "".join(rng.choices(self.alphabet, k=rng.randint(2, 9) if self.gap else 1))


SCRIPTS = {
    "latin": Script("aaabcdeeeeffiiighijklmnooooprsttuuvwyzäß"),
    "cjk": Script("".join(map(chr, range(0x4E00, 0x4E00 + 400))), "", "。"),
    "arabic": Script("ابتثجحخدذرزسشصضطظعغفقكلمنهوي", " ", ". "),
}


@cache
def written(script: str, seed: int) -> tuple[str, list[tuple[int, int]]]:
    """A text as a PDF's would be extracted, and where its words stand."""
    rng, kind = random.Random(f"{script}{seed}"), SCRIPTS[script]
    text, words = "", []
    while len(text) < CHARACTERS // len(SCRIPTS):
        start = len(text)
        word = kind.word(rng)
        if script == "latin" and len(word) > 6 and rng.random() < 0.1:
            word = f"{word[:3]}-\n{word[3:]}" if word[3].islower() else word
        text += word
        words.append((start, len(text)))
        chance = rng.random()
        if chance < 0.08:
            text += kind.stop
        else:
            text += "\n" if chance < 0.16 else kind.gap
    return text, words


def set_otherwise(rng: random.Random, words: list[str]) -> list[str]:
    """The same words as somebody else would set them: case, ligatures, composition, vowel signs, dashes."""
    kind = rng.randrange(5)
    found = [re.sub(r"-\n", "", word) for word in words]
    if kind == 0:
        return [word.upper() if "ß" not in word else word for word in found]
    if kind == 1:
        return [word.replace("ff", "ﬀ").replace("fi", "ﬁ").replace("ff", "ﬀ") for word in found]
    if kind == 2:
        return [unicodedata.normalize("NFD", word) for word in found]
    if kind == 3:
        return [re.sub(r"([\u0621-\u064a])", "\\1\u064e", word, count=1) for word in found]
    return [word[:1] + "\u00ad" + word[1:] for word in found]


def misspelt(rng: random.Random, words: list[str]) -> list[str]:
    """One letter of one word is another; of a script without spaces, one that is not at an end."""
    found = [re.sub(r"-\n", "", word) for word in words]
    place = rng.randrange(1, len(found) - 1)
    letter = rng.randrange(len(found[place].rstrip(" .。\n")))
    found[place] = found[place][:letter] + "x" + found[place][letter + 1 :]
    return found


def one_dropped(rng: random.Random, words: list[str]) -> list[str]:
    """A word within the quotation is left out."""
    found = misspelt(rng, words) if len(words) > 20 else [re.sub(r"-\n", "", word) for word in words]
    del found[rng.randrange(2, len(found) - 2)]
    return found


def one_added(rng: random.Random, words: list[str]) -> list[str]:
    """A short word within the quotation is new."""
    found = [re.sub(r"-\n", "", word) for word in words]
    found.insert(rng.randrange(2, len(found) - 2), "so ")
    return found


EDITS: list[Edit] = [set_otherwise, misspelt, one_dropped, one_added]


@dataclass(frozen=True)
class Asked:
    """A quotation, and what it quotes."""

    script: str
    quote: str
    start: int
    end: int
    edit: Edit


def quotations() -> list[Asked]:
    """A thousand quotations of all scripts with all edits."""
    rng, made = random.Random(7), []
    for number in range(COUNT):
        script = list(SCRIPTS)[number % len(SCRIPTS)]
        text, words = written(script, 0)
        length = rng.randint(12, 40) if script != "cjk" else rng.randint(24, 80)
        first = rng.randrange(len(words) - length)
        chosen = words[first : first + length]
        edit = EDITS[number // len(SCRIPTS) % len(EDITS)]
        ends = [start for start, _ in chosen[1:]] + [chosen[-1][1]]  # each word with what is behind it
        pieces = [text[start:end] for (start, _), end in zip(chosen, ends, strict=True)]
        quote = "".join(edit(rng, pieces))
        if SCRIPTS[script].gap:
            quote = quote.replace(" ", rng.choice([" ", "  ", "\n", "\u00a0"]), 3)
        else:
            quote = quote.replace("\n", "")
        made.append(Asked(script, f"“{quote}”", chosen[0][0], chosen[-1][1], edit))
    return made


@pytest.fixture(scope="module")
def whole() -> tuple[Locator, dict[str, int]]:
    """All scripts' texts as one, and where each begins."""
    begins, text = {}, ""
    for script in SCRIPTS:
        begins[script] = len(text)
        text += written(script, 0)[0] + "\n\n"
    return Locator(text), begins


def is_right(place: Place | None, asked: Asked, begins: dict[str, int], text: str) -> bool:
    """Whether the place has the words of what is quoted, and none besides; a full stop may be with them."""
    if place is None:
        return False
    begin = begins[asked.script]
    found = text[place.start : place.end].strip(" .。\n")
    return (
        abs(place.start - begin - asked.start) <= 2 and found == text[begin + asked.start : begin + asked.end]
    )


@pytest.mark.timeout(120)  # some two seconds
def test_edited_quotations_are_located_to_the_word(whole: tuple[Locator, dict[str, int]]) -> None:
    pytest.importorskip("rapidfuzz")
    locator, begins = whole
    assert CHARACTERS <= len(locator.text) < 1.1 * CHARACTERS
    asked = quotations()
    places = [locator.locate(each.quote) for each in asked]
    right = [is_right(place, each, begins, locator.text) for place, each in zip(places, asked, strict=True)]
    assert sum(right) >= 0.99 * COUNT, _wrong(asked, places, right, locator.text, begins)
    assert {place.how for place in places if place is not None} == {"exact", "fuzzy"}
    as_set = [place for place, each in zip(places, asked, strict=True) if each.edit is set_otherwise]
    assert sum(place is not None and place.how == "exact" for place in as_set) > 0.9 * len(as_set)


def _wrong(
    asked: list[Asked],
    places: list[Place | None],
    right: list[bool],
    text: str,
    begins: dict[str, int],
) -> str:
    """What was missed, by script and edit, and the first of them in full."""
    lines = []
    for each, place, fine in zip(asked, places, right, strict=True):
        if not fine:
            begin = begins[each.script]
            found = None if place is None else text[place.start : place.end]
            wanted = text[begin + each.start : begin + each.end]
            lines.append(f"{each.script} {each.edit.__name__}\n  {each.quote!r}\n  {found!r}\n  {wanted!r}")
    return f"{len(lines)} wrong\n" + "\n".join(lines[:8])


def test_invented_quotations_are_not_located(whole: tuple[Locator, dict[str, int]]) -> None:
    pytest.importorskip("rapidfuzz")
    locator, _ = whole
    rng, invented = random.Random(3), []
    for number in range(COUNT):
        script = list(SCRIPTS)[number % len(SCRIPTS)]
        text, words = written(
            script, number % 2
        )  # of another text, or of this one with its words in another order
        length = rng.randint(6, 40) if script != "cjk" else rng.randint(16, 80)
        first = rng.randrange(len(words) - length)
        chosen = [text[start:end] for start, end in words[first : first + length]]
        rng.shuffle(chosen)
        invented.append(SCRIPTS[script].gap.join(chosen))
    found = [(quote, locator.locate(quote)) for quote in invented]
    assert [quote for quote, place in found if place is not None] == []
