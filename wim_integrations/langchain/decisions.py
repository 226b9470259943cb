"""Reviews in the shapes of LangChain's ``HumanInTheLoopMiddleware``: a request, and a decision for each margin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from typing_extensions import TypedDict

from wim_kernel import MarginsError
from wim_kernel.common import plain_data
from wim_kernel.common.margins import without_text

ACTION = "use_margin"
Decision = Literal["approve", "edit", "reject", "respond"]
DECISIONS: tuple[Decision, ...] = get_args(Decision)
_EDITABLE = ("text", "note", "kept")


class ActionRequest(TypedDict):
    """A margin to decide on; ``args`` has its text, note, place and relevance."""

    name: str
    args: dict[str, Any]
    description: str


class ReviewConfig(TypedDict):
    """The decisions that are allowed for the request at the same position."""

    action_name: str
    allowed_decisions: list[Decision]


class ReviewRequest(TypedDict):
    """What a graph shows to a person, as LangChain's ``HITLRequest``."""

    action_requests: list[ActionRequest]
    review_configs: list[ReviewConfig]


def review_request(
    margins: Sequence[Mapping[str, Any]], *, allowed_decisions: Sequence[Decision] = DECISIONS
) -> ReviewRequest:
    """The kept margins as a request for review, for `interrupt` in a graph's node.

    The shape is that of LangChain's ``HumanInTheLoopMiddleware``, so that a page which shows that can show this. Each
    kept margin with text is an action called ``use_margin``. The person's reply, ``{"decisions": [...]}``, has a
    decision for each, in order; `reviewed` applies it:

    - ``{"type": "approve"}``: the margin stays;
    - ``{"type": "edit", "edited_action": {"name": "use_margin", "args": {...}}}``: the margin with another ``text``,
      ``note`` or ``kept``; other arguments are ignored;
    - ``{"type": "reject", "message": "why"}``: the margin is left out; the message, if there is one, is its note;
    - ``{"type": "respond", "message": "..."}``: the person's own words in place of the margin.

    Args:
        margins: the margins, as `WimMargins` puts them out.
        allowed_decisions: the decisions that the person may take.

    Raises:
        ValueError: for no decision, or one that does not exist.

    Example:
        >>> builder.add_node(  # doctest: +SKIP
        ...     "review",
        ...     lambda state: {
        ...         "margins": reviewed(state["margins"], interrupt(review_request(state["margins"])))
        ...     },
        ... )
    """
    unknown = [name for name in allowed_decisions if name not in DECISIONS]
    if unknown or not allowed_decisions:
        raise ValueError(f"allowed_decisions are some of {DECISIONS}, not {list(allowed_decisions)}.")
    shown = [margins[position] for position in _shown(margins)]
    config = ReviewConfig(action_name=ACTION, allowed_decisions=list(allowed_decisions))
    return {
        "action_requests": [_action(margin) for margin in shown],
        "review_configs": [config.copy() for _ in shown],
    }


def is_decided(reply: object) -> bool:
    """Whether a person's reply has decisions."""
    return isinstance(reply, Mapping) and "decisions" in reply


def decided(
    written: Sequence[Any], reply: Mapping[str, Any], allowed: Sequence[Decision]
) -> list[dict[str, Any]]:
    """The margins after a person's decisions.

    Raises:
        MarginsError: for decisions that are not one for each margin shown, not allowed, or not of their shape.
    """
    decisions = reply["decisions"]
    if not isinstance(decisions, list | tuple):
        raise MarginsError(f"The decisions are a list, not {plain_data.shown(decisions)}.")
    positions = _shown(written)
    if len(decisions) != len(positions):
        raise MarginsError(
            f"Decisions: {len(decisions)}, margins shown: {len(positions)}. Give one for each, in order."
        )
    margins = [dict(margin) for margin in written]
    for number, (position, decision) in enumerate(zip(positions, decisions, strict=True)):
        try:
            _change(margins[position], _changes(decision, allowed))
        except plain_data.WrongTypeError as error:
            raise MarginsError(f"Decision {number} is wrong: {error}.") from error
    return margins


def _change(margin: dict[str, Any], changes: dict[str, Any]) -> None:
    """Change a margin's data. What was found of an old text is left out."""
    evidence = margin.get("evidence")
    if changes.get("text", margin["text"]) != margin["text"] and isinstance(evidence, Mapping):
        margin["evidence"] = without_text(evidence)
    margin.update(changes)


def _shown(margins: Sequence[Any]) -> list[int]:
    """The positions of the margins in a request: the kept ones that have text."""
    for margin in margins:
        if not isinstance(margin, Mapping):
            raise MarginsError(
                f"A review is of margins as WimMargins puts them out; this is a {type(margin).__name__}."
            )
    return [
        position
        for position, margin in enumerate(margins)
        if margin.get("kept", True) and str(margin.get("text", "")).strip()
    ]


def _action(margin: Mapping[str, Any]) -> ActionRequest:
    names = ("text", "note", "kept", "index", "relevance", "document", "start", "end")
    args = {name: margin[name] for name in names if name in margin}
    source = (margin.get("metadata") or {}).get("source")
    if source is not None:
        args["source"] = source
    relevance = f" (relevance {margin['relevance']:.2f})" if "relevance" in margin else ""
    where = "" if source is None else f", from {source}"
    description = f"Use this note for the answer?{relevance}{where}\n\n{str(margin['text']).strip()}"
    return {"name": ACTION, "args": args, "description": description}


def _changes(decision: object, allowed: Sequence[Decision]) -> dict[str, Any]:
    """What a decision changes in a margin."""
    kind = plain_data.mapping("decision", decision).get("type")
    if kind not in allowed:
        raise plain_data.WrongTypeError("type", f"one of {', '.join(allowed)}", kind)
    assert isinstance(decision, Mapping)
    if kind == "approve":
        return {}
    if kind == "reject":
        message = plain_data.string_or_none("message", decision.get("message"))
        return {"kept": False, **({"note": message} if message else {})}
    if kind == "respond":
        return {"text": plain_data.string("message", decision.get("message")), "quotes": []}
    action = plain_data.mapping("edited_action", decision.get("edited_action"))
    if action.get("name", ACTION) != ACTION:
        raise plain_data.WrongTypeError("edited_action's name", repr(ACTION), action["name"])
    args = plain_data.mapping("edited_action's args", action.get("args"))
    edited = {name: args[name] for name in _EDITABLE if name in args}
    for name, value in edited.items():
        plain_data.truth(name, value) if name == "kept" else plain_data.string(name, value)
    return edited
