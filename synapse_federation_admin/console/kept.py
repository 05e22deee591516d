# SPDX-License-Identifier: Apache-2.0
"""What came of a form, for the page that it leads to.

So a reload of that page, and the way back to it, does nothing again.
"""

import secrets
from collections import OrderedDict
from typing import Any

from synapse_federation_admin import limits
from synapse_federation_admin.homeserver.homeserver import Homeserver


class Kept:
    """Keeps answers of the API in this process, for some minutes.

    Another process does not have them.
    """

    def __init__(self, homeserver: Homeserver) -> None:
        self._homeserver = homeserver
        # By ID: when it was kept, what it is of, and the answer; the oldest first.
        self._answers: OrderedDict[str, tuple[int, str, Any]] = OrderedDict()

    def keep(self, of: str, answer: Any) -> str:
        """Keep an answer; return its ID.

        Args:
            of: What it is of: `diagnosis`, and the server.
            answer: The object that the model of the API describes.
        """
        self._drop()
        key = secrets.token_urlsafe(9)
        self._answers[key] = (self._homeserver.now_ms(), of, answer)
        if len(self._answers) > limits.KEPT_ANSWERS:
            self._answers.popitem(last=False)
        return key

    def find(self, of: str, key: str) -> Any:
        """Return an answer; None if this process does not have it."""
        self._drop()
        _, kept_of, answer = self._answers.get(key, (0, None, None))
        return answer if kept_of == of else None

    def _drop(self) -> None:
        oldest_ms = self._homeserver.now_ms() - limits.KEPT_ANSWERS_MS
        while self._answers and next(iter(self._answers.values()))[0] < oldest_ms:
            self._answers.popitem(last=False)
