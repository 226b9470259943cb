"""Texts and files that people paste and attach."""

from __future__ import annotations

import base64

QUESTION = "Who owned the ship?"
FILLER = "The gull sat on the mast, and it rained on the harbour all night. "
LONG = (FILLER * 12 + "Elsa Brandt owned the ship Aurora. " + FILLER * 12).strip()
IMAGE = {"type": "image", "base64": "AAAA", "mime_type": "image/png"}
FILE = {"type": "file", "base64": base64.b64encode(LONG.encode()).decode(), "mime_type": "text/plain"}
TRACEBACK = (
    "Traceback (most recent call last):\n" + '  File "ship.py", line 7, in sail\n    hoist(sails)\n' * 40
)
TRACEBACK += "ValueError: no wind"
