"""Questions about ships, short enough for tiny models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

FACTS = (
    "The harbour of Brill lies at the mouth of a slow brown river.",
    "The ship Aurora was owned by Margaret Vale, a widow.",
    "The school stands on the hill behind the church.",
    "The captain of the Aurora was a man called Tom Hale.",
)


@pytest.fixture
def ships(tmp_path: Path) -> Path:
    """A data file of two questions with gold paragraphs."""
    rows = [
        {"id": "owner", "question": "Who owned the Aurora?", "answers": ["Margaret Vale"], "gold": [1]},
        {"id": "captain", "question": "Who was captain?", "answers": ["Tom Hale"], "gold": [3]},
    ]
    path = tmp_path / "ships.jsonl"
    path.write_text("".join(json.dumps({**row, "chunks": FACTS}) + "\n" for row in rows))
    return path
