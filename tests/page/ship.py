"""A log of a ship, a question, and what a reader would note."""

from __future__ import annotations

from wim_kernel import Chunk

QUESTION = "Who owned the ship Aurora, and where did she buy it?"
OWNER = "Elsa Brandt owned the ship Aurora."
PLACE = "She bought the ship Aurora in Brill, at the autumn sale."
TEXTS = (
    "The harbour of Brill lies at the mouth of a slow brown river. In winter the fog stands on it until noon, and no "
    "ship leaves before the pilots have had their coffee. The log of the Aurora begins here, on a wet day in March.",
    f"The crew was paid in silver. {OWNER} Nobody aboard had ever seen her ashore without her brother, who kept the "
    "accounts and counted every rope.",
    "The gull sat on the mast. It rained all night, and the watch sang to stay awake. Towards morning the ship "
    "Aurora passed the light of Emden, close enough to hear the bell.",
    f"The papers were found in the captain's desk. {PLACE} The price stands beside it in another hand, and is not "
    "to be read.",
    "The last pages tell of the owner's house on the hill: of its garden, of the ship in a bottle above the fire, "
    "and of the cat.",
)
ANSWER = "Elsa Brandt owned it [1]. She bought it in Brill [2]."


def document() -> list[Chunk]:
    """The log, a chunk a text, of one source."""
    chunks, start = [], 0
    for text in TEXTS:
        chunks.append(Chunk.of(text, "log of the Aurora.txt", start))
        start += len(text) + 1
    return chunks
