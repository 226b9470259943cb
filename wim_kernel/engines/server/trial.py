"""The trial that finds out whether a server measures likelihoods, run once for all threads."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from wim_kernel.common import forks
from wim_kernel.common.errors import ServerError
from wim_kernel.engines.server.loop import wait_for
from wim_kernel.engines.server.requests import Requests
from wim_kernel.engines.server.transport import COOLDOWN_SECONDS
from wim_kernel.text.run_text import Text

logger = logging.getLogger(__name__)

TRIAL = "The cat sat on the mat and looked at the door."
"""A text whose last tokens' likelihoods are measured."""


class LikelihoodTrial:
    """Finds out, when it is first asked, whether and how servers measure likelihoods.

    Args:
        requests: sends requests to the servers.
        encode: makes token ids of a text.
    """

    def __init__(self, requests: Requests, encode: Callable[[Text], Sequence[int]]) -> None:
        self._requests = requests
        self._encode = encode
        self._found: bool | None = None
        self._next = 0.0
        self.renew_after_fork()
        forks.register(self)

    def renew_after_fork(self) -> None:
        """Make a new lock: the holder of the old one lives in the parent process."""
        self._lock = threading.Lock()

    def succeeds(self) -> bool:
        """Whether likelihoods can be measured. Threads that ask meanwhile wait for the trial.

        Raises:
            ServerError: if the trial fails for a reason that will pass.
        """
        if self._found is None:
            with self._lock:
                if self._found is None and time.monotonic() >= self._next:
                    self._try()
        return bool(self._found)

    def _try(self) -> None:
        try:
            self._found = bool(wait_for(self._requests.find_ways(self._encode(Text(TRIAL)))))
        except ServerError as error:
            if error.status != 500:
                raise
            self._next = time.monotonic() + COOLDOWN_SECONDS
            logger.warning("%s So no likelihoods are measured; they are tried again later.", error)
