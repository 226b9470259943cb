"""The prompts, as text with named holes, and how holes are filled.

A template's own text is the application's and may hold whatever the model's chat format needs. What goes into a hole is
data: it is never searched for holes, braces or control tokens.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from wim_kernel.text.run_text import Prompt, Text

Task = Literal["answer", "summarise"]
HOLES = ("question", "margins", "note", "schema")


def fill(template: str, /, **holes: str | Prompt) -> Prompt:
    """Runs of text from a template whose ``{name}`` holes are filled with data, or with runs of their own.

    Only names that are given are holes; every other brace is a brace.

    A space before a hole goes with the data, as tokenizers have it.

    >>> fill("Q: {question} {x}", question="{margins}?")
    (Text(text='Q:', trusted=True), Text(text=' {margins}?', trusted=False), Text(text=' {x}', trusted=True))
    """
    runs: list[Text] = []
    # text, hole's name, text, hole's name, ..., text
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
    """What stands around the document. It is part of the reading, so all questions and tasks share it.

    Attributes:
        system: who the model is.
        document: what stands right before the document's first chunk.
        separator: what stands between two chunks that are not one run of one source.
    """

    system: str = "You read documents carefully and answer from what they say."
    document: str = "Document:\n"
    separator: str = "\n\n"


@dataclass(frozen=True)
class Prompts:
    """Every prompt of one task. Replace any of them with ``dataclasses.replace``.

    Attributes:
        question: leads in the question at a chunk boundary; its hole's likelihood is the default relevance, so it must
            begin with text. Empty for a task without a question.
        margin: asks for the note, after ``question``.
        decision: asks for the note or NO, after ``question``.
        judgement: asks YES or NO of a written note, after ``question``.
        found: what the question's prompt says, from the second round on, of what the round before found.
        enough: asks YES or NO whether the notes so far answer the question, after ``question``.
        answer: asks for the answer, given what ``notes`` made. If it has a ``{margins}`` hole itself, they go there.
        schema: what the answer's prompt says of a JSON schema, behind ``answer``; left out if there is none.
        notes: what the answer's prompt says of the kept margins, in front of ``answer``; left out if there are none.
        margin_cue, decision_cue, judgement_cue, answer_cue: how the reply begins for a base model, which has no turns.
    """

    question: str = "\n\nQuestion about the document above: {question}"
    margin: str = "\n\nCopy from the last passage above, briefly, the facts that help to answer it."
    decision: str = (
        "\n\nDoes the last passage above help to answer the question? "
        "Reply NO, or reply YES: followed by the facts from it that help."
    )
    judgement: str = "\n\nNote: {note}\n\nDoes this note help to answer the question? Reply YES or NO."
    found: str = "\n\nFound in the document so far:\n{note}"
    enough: str = (
        "\n\nNotes:\n{note}\n\nDo these notes say everything that the answer needs? Reply YES or NO."
    )
    notes: str = "\n\nPassages of the document that bear on the question:\n{margins}"
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
