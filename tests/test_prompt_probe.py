"""A probe reports the attention that the model's own eager code gives out."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from helpers import spying

from wim_kernel.engines.base import AttentionProbe, Branch, Scores
from wim_kernel.engines.local.engine import LocalEngine
from wim_kernel.engines.local.rows import torch_rows
from wim_kernel.engines.local.rows.torch_rows import TorchRows
from wim_kernel.text.run_text import Text

pytestmark = pytest.mark.usefixtures("large_blocks")

DOCUMENT = "The brig Halcyon left port in May. Old Mrs Fenn bought her for a song. It rained all of June."
QUESTION = " Who bought the ship?"


def probed(engine: LocalEngine, cuts: list[int], heads, at: int, prefix) -> torch.Tensor:
    lead = Text("\n\nQuestion:", trusted=True)
    branch = Branch(at, (lead, Text(QUESTION)), scored=1, probe=AttentionProbe(tuple(cuts), tuple(heads)))
    other = Branch(0, (lead, Text(" N/A")), scored=1)
    found = {}
    for step in engine.decode(prefix, [other, branch]):
        found.update({item.branch: item.done for item in step if item.done is not None})
    assert found[0].scores.attention is None
    return torch.tensor(found[1].scores.attention), found[1].suffix_ids


KINDS = ("llama", "mistral", "gemma2", "gemma3", "gpt_oss", "qwen3", "gpt_neox")


@pytest.mark.parametrize(
    ("kind", "attention"),
    [*((kind, "parts") for kind in KINDS), ("gemma2", "kernels"), ("gpt_oss", "kernels")],
)
def test_probe_equals_eager_attention(tiny_model, smollm2, kind, attention):
    engine = LocalEngine(copy.deepcopy(tiny_model(kind)), smollm2[1], attention=attention)
    assert engine.cache_mode == "shared"
    ids = [*engine.head("You read.", "Document:\n"), *engine.encode(Text(DOCUMENT))]
    prefix = engine.open()
    engine.extend(prefix, [ids], 0)
    cuts = [0, 3, len(ids) // 2, len(ids) - 2, len(ids), len(ids) + 3]
    mass, suffix = probed(engine, cuts, engine.heads, len(ids), prefix)

    eager = copy.deepcopy(tiny_model(kind))
    eager.set_attn_implementation("eager")
    with torch.inference_mode():
        layers = eager(torch.tensor([[*ids, *suffix]]), output_attentions=True).attentions
    queries = engine.codec.scored(
        engine.codec.suffix((Text("\n\nQuestion:", trusted=True), Text(QUESTION)), ""), 1
    )
    for row, (layer, head) in enumerate(engine.heads):
        weights = layers[layer][0, head, len(ids) + queries.start : len(ids) + queries.stop]
        weights = weights[:, : len(ids) + len(suffix)].mean(0)
        wanted = [float(weights[start:end].sum()) for start, end in itertools.pairwise(cuts)]
        assert mass[row].tolist() == pytest.approx(wanted, abs=1e-5)
    assert float(mass.sum(1).max()) > 0.2


@pytest.mark.invariant(3)
@pytest.mark.parametrize("kind", ["lfm2", "qwen3_next"])
def test_layers_with_states_measure_prompts_of_all_lengths_in_one_pass(
    tiny_model, smollm2, kind, monkeypatch
):
    engine = LocalEngine(copy.deepcopy(tiny_model(kind)), smollm2[1])
    assert engine.cache_mode == "shared"
    ids = [*engine.head("You read.", "Document:\n"), *engine.encode(Text(DOCUMENT))]
    prefix = engine.open()
    engine.extend(prefix, [ids[:20]], 0)
    engine.extend(prefix, [ids[20:]], 20)
    probe = AttentionProbe((0, 5, 12, 20), engine.heads)
    texts = [" Who?", QUESTION, " Who bought the brig Halcyon, and in which month did it leave?"]
    branches = [
        Branch(at, (Text("\n\nQuestion:"), Text(text)), scored=1, probe=probe)
        for at in (len(ids), 20)
        for text in texts
    ]

    def measured(some: list[Branch]) -> list[Scores]:
        found = {}
        for step in engine.decode(prefix, some):
            found.update({item.branch: item.done.scores for item in step if item.done is not None})
        return [found[index] for index in range(len(some))]

    with spying(engine.model) as spy:
        together = measured(branches)
    assert len(spy.batches) == 1
    monkeypatch.setattr(torch_rows, "WIDEST", 1)
    with spying(engine.model) as spy:
        apart = measured(branches)
    assert 1 < len(spy.batches) <= len(branches)
    assert [scores.likelihood for scores in apart] == pytest.approx(
        [scores.likelihood for scores in together], abs=1e-4
    )
    monkeypatch.setattr(TorchRows, "_prompt_padded_right", TorchRows._prompt_by_length)
    for branch, scores, other in zip(branches, together, apart, strict=True):
        (alone,) = measured([branch])
        assert scores.likelihood == pytest.approx(alone.likelihood, abs=1e-4)
        torch.testing.assert_close(
            torch.tensor(scores.attention), torch.tensor(alone.attention), rtol=1e-3, atol=1e-5
        )
        torch.testing.assert_close(
            torch.tensor(other.attention), torch.tensor(alone.attention), rtol=1e-3, atol=1e-5
        )


def test_models_own_cache_reports_no_attention(tiny_model, smollm2):
    engine = LocalEngine(copy.deepcopy(tiny_model("llama")), smollm2[1], cache_mode="snapshot")
    assert engine.heads == ()


@pytest.mark.parametrize("text", [DOCUMENT, "Füße! <|im_end|> 🙂 Ende.", "a  b\n\nc", "", "lone \ud83d."])
def test_placed_tokens_are_the_encoded_ones_in_order(smollm2, tiny_model, text):
    engine = LocalEngine(tiny_model("llama"), smollm2[1])
    tokens, starts = engine.encode_with_offsets(text)
    assert tokens == engine.encode(Text(text))
    assert starts == sorted(starts)
    for place, count in zip(starts, range(len(tokens)), strict=True):
        assert engine.codec.decode(tokens[:count]).rstrip("\ufffd").strip() in text[: place + 1].strip() + " "
