"""Three passages about one ship, and a question."""

from __future__ import annotations

from helpers import config

from wim_kernel.run.relevance.calibration import Calibration

QUESTION = "Who owned the Halcyon?"
SHIP = "The Halcyon was a brig of ninety tons. Elsa Brandt owned the Halcyon for eleven years."
CREW = "The Halcyon had a crew of nine. Most of the crew came from villages along the coast."
ROUTE = "The Halcyon sailed to Riga each spring. The ice was the worst danger of the route."
PASSAGES = [SHIP, CREW, ROUTE]
BRIEF = {"margin_config": config(24), "answer_config": config(4)}
FOUND = Calibration(heads=((1, 2), (0, 3)), source="examples")
