"""Prompts: templates with named holes, and how holes are filled.

A template's own text belongs to the application and may hold control tokens of the model's chat format. The value of a
hole is data: it is never searched for holes, braces or control tokens.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from wim_kernel.text.run_text import Prompt, Text

Task = Literal["answer", "summarise"]
HOLES = ("question", "margins", "note", "schema")


def fill(template: str, /, **holes: str | Prompt) -> Prompt:
    """Fill a template's ``{name}`` holes with data or with prompts; returns runs of text.

    Only the given names are holes; all other braces stay braces. A space before a hole goes to the data's run, since
    tokenizers put the space before a word into the word's token.

    >>> fill("Q: {question} {x}", question="{margins}?")
    (Text(text='Q:', trusted=True), Text(text=' {margins}?', trusted=False), Text(text=' {x}', trusted=True))
    """
    runs: list[Text] = []
    # alternately text and a hole's name: text, name, text, ..., text
    pieces = re.split("{(" + "|".join(map(re.escape, holes)) + ")}", template) if holes else [template]
    for text, name in zip(pieces[::2], [*pieces[1::2], None], strict=True):
        value = holes[name] if name else ""
        if isinstance(value, str):
            space = " " if name and text.endswith(" ") else ""
            value = (Text(space + value, hole=name or ""),) if value else ()
            text = text.removesuffix(space)
        runs += [Text(text, trusted=True)] if text else []
        runs += value
    return tuple(runs)


@dataclass(frozen=True)
class Frame:
    """The text around the document. It is part of the prefix, so that all questions and tasks share it.

    Attributes:
        system: the system prompt.
        document: the text before the document's first chunk.
        separator: the text between two chunks that do not continue each other.
    """

    system: str = "You read documents carefully and answer from what they say."
    document: str = "Document:\n"
    separator: str = "\n\n"


@dataclass(frozen=True)
class Prompts:
    """Every prompt of one task. Replace any of them with ``dataclasses.replace``.

    Attributes:
        question: the question at a chunk boundary. It must begin with text, since the likelihood of its hole is
            measured. Empty for a task without a question.
        margin: the request for a note, behind ``question``.
        decision: the request for a note or NO, behind ``question``.
        rating: the form of a chat model's reply, behind ``margin``: a rating and a note. ``{begins}`` are the first
            words of the last passage, ``{words}`` the most words of the note.
        quotes: the request for a rating and for sentences of the last passage, behind ``question``.
        judgement: the request for YES or NO about a written note, behind ``question``.
        found: the notes of the round before, in front of ``question``, from the second round on.
        enough: the request for YES or NO whether the notes so far answer the question, behind ``question``.
        answer: the request for the answer. If it has a ``{margins}`` hole, the kept margins go there.
        schema: the JSON schema, behind ``answer``; left out without a schema.
        notes: the kept margins, in front of ``answer``; left out without kept margins.
        cite: the request for citations, behind the numbered margins; left out without ``citations=True``.
        margin_cue, decision_cue, judgement_cue, answer_cue: the beginning of a base model's reply, which has no turns.
    """

    question: str = "\n\nQuestion about the document above: {question}"
    margin: str = "\n\nCopy from the last passage above, briefly, the facts that help to answer it."
    decision: str = (
        "\n\nDoes the last passage above help to answer the question? "
        "Reply NO, or reply YES: followed by the facts from it that help."
    )
    rating: str = (
        '\n\nThe last passage is the one that begins "{begins}". Reply in JSON alone: {"relevance": a whole number '
        'from 0 (the passage does not help) to 10 (it says just what is needed), "note": what you were asked for, in '
        "at most {words} words, or an empty string if the passage does not help}"
    )
    quotes: str = (
        '\n\nWhich sentences of the last passage above, the one that begins "{begins}", help to answer it? Reply in '
        'JSON alone: {"relevance": a whole number from 0 (the passage does not help) to 10 (it says just what is '
        'needed), "quotes": [those sentences, each copied word for word, at most {words} words in all, or nothing if '
        "the passage does not help]}"
    )
    judgement: str = "\n\nNote: {note}\n\nDoes this note help to answer the question? Reply YES or NO."
    found: str = "\n\nFound in the document so far:\n{note}"
    enough: str = (
        "\n\nNotes:\n{note}\n\nDo these notes say everything that the answer needs? Reply YES or NO."
    )
    notes: str = "\n\nPassages of the document that bear on the question:\n{margins}"
    cite: str = (
        "\n\nThese passages have numbers. Behind each statement of your answer, write the number of the passage that "
        "it comes from in square brackets, such as [1]."
    )
    answer: str = "\n\nAnswer the question from the document. Be brief.\n\nQuestion: {question}"
    schema: str = "\n\nReply in JSON that fits this schema: {schema}"
    margin_cue: str = "Note:"
    decision_cue: str = "Reply:"
    judgement_cue: str = "Reply:"
    answer_cue: str = "Answer:"


PROMPTS: dict[Task, Prompts] = {
    "answer": Prompts(),
    "summarise": Prompts(
        question="",
        notes="\n\nNotes taken while reading the document:\n{margins}",
        margin="\n\nSummarise the last passage above in one or two short sentences.",
        decision="\n\nReply NO if the last passage above says nothing that a summary of the document needs, "
        "or reply YES: followed by one or two sentences that summarise it.",
        judgement="\n\nNote: {note}\n\nDoes a summary of the document need this note? Reply YES or NO.",
        answer="\n\nWrite a short summary of the whole document above. {question}",
        margin_cue="Summary:",
        answer_cue="Summary:",
    ),
}
