# SPDX-License-Identifier: Apache-2.0
"""What came of a form, for the page that it leads to.

So a reload of that page, and the way back to it, does nothing again.
"""

import secrets
from typing import Any

from synapse_federation_admin import limits
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.homeserver.newest import keep_newest


class Kept:
    """Keeps answers of the API in this process, for some minutes.

    Another process does not have them.
    """

    def __init__(self, homeserver: Homeserver) -> None:
        self._homeserver = homeserver
        # By ID: when it was kept, what it is of, and the answer.
        self._answers: dict[str, tuple[int, str, Any]] = {}

    def keep(self, of: str, answer: Any) -> str:
        """Keep an answer; return its ID.

        Args:
            of: What it is of: `diagnosis`, and the server.
            answer: That of the API.
        """
        key = secrets.token_urlsafe(9)
        kept = (self._homeserver.now_ms(), of, answer)
        keep_newest(self._answers, key, kept, limits.KEPT_ANSWERS)
        return key

    def find(self, of: str, key: str) -> Any:
        """Return an answer; None if this process does not have it."""
        kept_ms, kept_of, answer = self._answers.get(key, (0, None, None))
        is_old = self._homeserver.now_ms() > kept_ms + limits.KEPT_ANSWERS_MS
        return None if is_old or kept_of != of else answer
