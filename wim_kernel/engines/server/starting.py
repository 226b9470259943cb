"""What an engine finds out before its first request: a server that answers, the model, and the form of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wim_kernel.common.errors import ServerError
from wim_kernel.engines.server.codecs import PromptCodec
from wim_kernel.engines.server.families import Family, Route
from wim_kernel.engines.server.loop import wait_for
from wim_kernel.engines.server.transport import Server


def first_that_answers(servers: Sequence[Server], model: str | None) -> tuple[Server, list[dict[str, Any]]]:
    """The first server that answers, and the models that it lists. A server may list none if ``model`` is given.

    Raises:
        ServerError: if none answers.
    """
    for index, server in enumerate(servers):
        try:
            return server, wait_for(server.models())
        except ServerError as error:
            if model is not None and error.status is not None and error.status not in (401, 403):
                return server, []  # it answers, and lists no models
            server.mark_failed()
            if index == len(servers) - 1:
                raise
    raise AssertionError


def chosen_model(model: str | None, models: Sequence[dict[str, Any]]) -> str:
    """The model's name: as given, or the only one that the server lists.

    Raises:
        ValueError: if it is not given and the server lists several, or none.
    """
    names = [str(entry["id"]) for entry in models]
    if model is None and len(names) == 1:
        return names[0]
    if model is None:
        raise ValueError(f"Say which model: the server serves {', '.join(names) or 'none by name'}.")
    return model


def chosen_route(route: Route | None, family: Family, codec: PromptCodec) -> Route:
    """The form of prompts: as given, or the most exact one that family and codec allow.

    Raises:
        ValueError: if the given one is not possible.
    """
    if route is None:
        return "chat" if not codec.exact else "tokens" if family.takes_ids else "text"
    if route != "chat" and not codec.exact:
        raise ValueError(f"route={route!r} needs the model's tokenizer: give tokenizer=.")
    if route == "chat" and codec.exact:
        raise ValueError("route='chat' lets the server apply its own template: give no tokenizer.")
    if route == "tokens" and not family.takes_ids:
        raise ValueError(f"A server of the family {family.name!r} takes no token ids.")
    return route
