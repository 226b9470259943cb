"""A branch as one request: a block for each chunk, marks for the cache, and the prompt in the last block.

The prompt comes last, so that all requests on a document begin alike. A request for chunk 5 sends chunks 1 to 5: what a
request before it has sent is read from the cache at a tenth of the price, and the rest is written for the next one.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

from wim_kernel.engines.base import Branch
from wim_kernel.engines.chat import codec
from wim_kernel.engines.chat.backend import Block, ChatRequest
from wim_kernel.engines.chat.prefixes import ChatPrefix
from wim_kernel.engines.chat.providers import Provider


def request_of(prefix: ChatPrefix, branch: Branch, provider: Provider) -> ChatRequest:
    """The request of a branch.

    Args:
        prefix: the prefix that the branch continues.
        branch: the branch.
        provider: the provider, whose cache decides about marks and keys.
    """
    system, texts = _document(prefix, branch.at)
    marked = _marked(prefix, branch.at, provider)
    blocks: list[Block] = []
    blank = ""
    for end, text in texts:
        if not (blank + text).strip():  # providers refuse blocks without text
            blank += text
            continue
        blocks.append(Block(blank + text, mark=end in marked))
        blank = ""
    blocks.append(Block(blank + "".join(run.text for run in branch.prompt)))
    extra = {**provider.extra, "prompt_cache_key": _key(prefix)} if provider.keyed else dict(provider.extra)
    return ChatRequest(system, blocks, fields_of(branch.generation), extra, provider.mark)


def fields_of(generation: Any) -> dict[str, Any]:
    """The settings that a generation config asks for; what it leaves open stays the chat model's own.

    ``max_new_tokens`` is not sent: models that reason spend the same tokens on it, and a reply cut short is worth
    nothing. Set ``max_tokens`` of the chat model for a hard limit.
    """
    fields: dict[str, Any] = {}
    if generation is None:
        return fields
    if generation.do_sample:
        chosen = {"temperature": generation.temperature, "top_p": generation.top_p}
        fields |= {name: value for name, value in chosen.items() if value is not None}
    stops = generation.stop_strings
    if stops:
        fields["stop"] = [stops] if isinstance(stops, str) else list(stops)
    return fields


def _document(prefix: ChatPrefix, at: int) -> tuple[str, list[tuple[int, str]]]:
    """The system prompt, and for each chunk the position of its end and its text; the first has the document's lead."""
    ids = prefix.ids[:at]
    mark = ids.index(codec.SYSTEM_END)
    begins = [mark + 1, *(end for end in prefix.ends[1:] if end < at), at]
    texts = [(end, codec.decode(ids[start:end])) for start, end in itertools.pairwise(begins)]
    return codec.decode(ids[:mark]), [(end, text) for end, text in texts if text]


def _marked(prefix: ChatPrefix, at: int, provider: Provider) -> Sequence[int]:
    """The boundaries to mark: the newest, and the last ones that the cache holds, where the provider looks for them."""
    if not provider.mark:
        return ()
    known = [end for end in prefix.warm(at, provider.seconds) if end != at]
    return [*known[1 - provider.most_marks :], at] if provider.most_marks > 1 else [at]


def _key(prefix: ChatPrefix) -> str:
    """A name of the document for the provider, the same in all processes: a digest of its beginning."""
    begin = codec.decode(
        prefix.ids[: prefix.ends[min(1, len(prefix.ends) - 1)]] if prefix.ends else prefix.ids
    )
    return "wim-" + hashlib.sha256(begin.encode()).hexdigest()[:32]
