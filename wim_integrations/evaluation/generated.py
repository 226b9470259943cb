"""Generated tasks, which need no data: random documents with hidden answers.

They follow the designs of RULER (arXiv 2404.06654): needles in a haystack, variable tracking, retrieval from a list
of keys and values, and the most common words of a list. Words come from the package ``wonderwords``.
"""

from __future__ import annotations

import hashlib
import random
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from wim_integrations.evaluation.errors import EvaluationError, require
from wim_integrations.evaluation.tasks import SEPARATOR, Question, Task

CountTokens = Callable[[str], int]
SHORTEST = 500  # tokens; a shorter document has no room for the hidden sentences
_SENTENCES_A_PARAGRAPH = 6
_LINES_A_PARAGRAPH = 10
_COMMON, _COMMON_TIMES, _OTHER_TIMES = 10, 30, 3


@dataclass(frozen=True)
class _Draft:
    question: str
    answers: tuple[str, ...]
    paragraphs: list[str]
    gold: tuple[int, ...] | None
    metric: str


def generate_task(name: str, count: int, tokens: int, count_tokens: CountTokens, seed: int = 0) -> Task:
    """Generate a task; the same arguments and tokenizer give the same questions.

    Args:
        name: one of `GENERATORS`.
        count: how many questions.
        tokens: about how many tokens each document has.
        count_tokens: a callback that counts a text's tokens.
        seed: the seed of the random choices.

    Raises:
        EvaluationError: if the documents would be too short, or without the package of words.
    """
    if tokens < SHORTEST:
        raise EvaluationError(f"--tokens is at least {SHORTEST} for generated tasks, not {tokens}.")
    questions = []
    for index in range(count):
        draft = GENERATORS[name](random.Random(f"{seed}/{name}/{index}"), tokens, count_tokens)
        questions.append(
            Question(
                name,
                f"{name}-{index:04}",
                draft.question,
                draft.answers,
                tuple(draft.paragraphs),
                draft.gold,
                draft.metric,
            )
        )
    digest = hashlib.sha256(f"{name}/{tokens}/{seed}".encode()).hexdigest()
    return Task.of(name, questions, digest)


@cache
def _words(kind: str) -> tuple[str, ...]:
    """The package's words of a kind, plain lower-case ones."""
    words = require("wonderwords", "A generated task").RandomWord().filter(include_categories=[kind])
    return tuple(sorted({word for word in words if word.isascii() and word.isalpha() and word.islower()}))


def _filler(rng: random.Random) -> str:
    """A random sentence that no question is about."""
    noun, other = rng.sample(_words("nouns"), 2)
    first, second = rng.sample(_words("adjectives"), 2)
    return rng.choice(
        (
            f"The {first} {noun} stood beside the {second} {other}.",
            f"Nobody had seen the {first} {noun} near the {other} before.",
            f"No {noun} was ever as {first} as the {second} {other}.",
            f"They spoke of the {noun}, which was {first}, and then of the {other}.",
            f"In the morning the {first} {noun} and the {other} were {second} again.",
        )
    )


def _haystack(
    rng: random.Random, tokens: int, count_tokens: CountTokens, hidden: Sequence[str]
) -> tuple[list[str], list[int]]:
    """Filler paragraphs with sentences hidden in them, in order, and the index of each hidden sentence's paragraph."""
    room = tokens - count_tokens(" ".join(hidden))
    paragraphs: list[list[str]] = []
    while room > 0 or len(paragraphs) < len(hidden):
        paragraphs.append([_filler(rng) for _ in range(_SENTENCES_A_PARAGRAPH)])
        room -= count_tokens(" ".join(paragraphs[-1]) + SEPARATOR)
    hidden_in = sorted(rng.sample(range(len(paragraphs)), len(hidden)))
    for paragraph, sentence in zip(hidden_in, hidden, strict=True):
        paragraphs[paragraph].insert(rng.randint(0, _SENTENCES_A_PARAGRAPH), sentence)
    return [" ".join(sentences) for sentences in paragraphs], hidden_in


def needles(rng: random.Random, tokens: int, count_tokens: CountTokens) -> _Draft:
    """Four numbers for four names are hidden in a haystack; one of them is asked for."""
    names = [f"{rng.choice(_words('adjectives'))} {noun}" for noun in rng.sample(_words("nouns"), 4)]
    numbers = [str(number) for number in rng.sample(range(1_000_000, 10_000_000), 4)]
    hidden = [f"The secret number of the {n} is {v}." for n, v in zip(names, numbers, strict=True)]
    paragraphs, hidden_in = _haystack(rng, tokens, count_tokens, hidden)
    target = rng.randrange(4)
    return _Draft(
        f"What is the secret number of the {names[target]}?",
        (numbers[target],),
        paragraphs,
        (hidden_in[target],),
        "any-answer",
    )


def variable_tracking(rng: random.Random, tokens: int, count_tokens: CountTokens) -> _Draft:
    """Two chains of five assignments are hidden in a haystack; all variables with one chain's value are asked for."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    names = list(dict.fromkeys("".join(rng.choices(letters, k=5)) for _ in range(40)))[:10]
    chains = (names[:5], names[5:])
    values = [str(value) for value in rng.sample(range(10_000, 100_000), 2)]
    lines = [
        [
            f"Let {name} be {value}." if i == 0 else f"Let {name} be the same as {chain[i - 1]}."
            for i, name in enumerate(chain)
        ]
        for chain, value in zip(chains, values, strict=True)
    ]
    # The chains are mixed, each in its own order.
    owners = [0] * 5 + [1] * 5
    rng.shuffle(owners)
    following = [iter(lines[0]), iter(lines[1])]
    paragraphs, hidden_in = _haystack(rng, tokens, count_tokens, [next(following[owner]) for owner in owners])
    target = rng.randrange(2)
    return _Draft(
        f"Which five variables have the value {values[target]}, directly or through other variables? "
        "List their names.",
        tuple(chains[target]),
        paragraphs,
        tuple(paragraph for paragraph, owner in zip(hidden_in, owners, strict=True) if owner == target),
        "all-answers",
    )


def key_value(rng: random.Random, tokens: int, count_tokens: CountTokens) -> _Draft:
    """A list of random keys and values; the value of one key is asked for."""
    paragraphs: list[str] = []
    pairs: list[tuple[str, str]] = []
    room = tokens
    while room > 0:
        fresh = [(_identifier(rng), _identifier(rng)) for _ in range(_LINES_A_PARAGRAPH)]
        paragraphs.append("\n".join(f'"{key}": "{value}"' for key, value in fresh))
        room -= count_tokens(paragraphs[-1] + SEPARATOR)
        pairs += fresh
    target = rng.randrange(len(pairs))
    key, value = pairs[target]
    return _Draft(
        f'What is the value of the key "{key}"?',
        (value,),
        paragraphs,
        (target // _LINES_A_PARAGRAPH,),
        "any-answer",
    )


def _identifier(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def common_words(rng: random.Random, tokens: int, count_tokens: CountTokens) -> _Draft:
    """A numbered list with ten words thirty times and other words three times; the ten words are asked for."""
    words = list(_words("nouns") + _words("adjectives"))
    words = list(dict.fromkeys(rng.sample(words, len(words))))
    each = count_tokens("\n".join(f"{100 + i}. {word}" for i, word in enumerate(words[:200]))) / 200
    times = min(_COMMON_TIMES, max(_OTHER_TIMES + 1, int(tokens / each / _COMMON / 2)))
    others = max(1, int(tokens / each - _COMMON * times) // _OTHER_TIMES)
    if _COMMON + others > len(words):
        raise EvaluationError(
            f"There are not enough words for a list of {tokens} tokens: use a smaller --tokens."
        )
    common, rare = words[:_COMMON], words[_COMMON : _COMMON + others]
    listed = common * times + rare * _OTHER_TIMES
    rng.shuffle(listed)
    lines = [f"{number}. {word}" for number, word in enumerate(listed, 1)]
    return _Draft(
        "What are the ten most common words in the list above?",
        tuple(common),
        ["\n".join(lines[start : start + 50]) for start in range(0, len(lines), 50)],
        None,
        "all-answers",
    )


GENERATORS: dict[str, Callable[[random.Random, int, CountTokens], _Draft]] = {
    "needles": needles,
    "variable-tracking": variable_tracking,
    "key-value": key_value,
    "common-words": common_words,
}
