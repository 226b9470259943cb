"""A text and a question for the tests of the command line."""

from __future__ import annotations

import json
from typing import Any

QUESTION = "Who owned the ship Aurora?"
FACTS = """\
The harbour of Brill lies at the mouth of a slow brown river. In winter the fog stands on it until noon,
and the pilots stay in bed. Fishing has been poor there since the old mole was broken by the storm.

The ship Aurora was owned by Margaret Vale, a widow who had never been to sea. She bought it with the
money that her husband had put aside for a mill, and she named it herself.

The school stands on the hill behind the church. Its bell was cast in the year of the great comet, and
children still count its nine strokes in the morning before they run.
"""


def events_in(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]
