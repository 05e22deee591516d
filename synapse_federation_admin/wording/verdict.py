# SPDX-License-Identifier: Apache-2.0
"""Whether it is us, in one sentence. Pure."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from synapse_federation_admin import limits
from synapse_federation_admin.wording.servers import how_far

# The states of senders of which nobody knows that they send.
_UNSEEN = {"gone", "never_seen"}


class Verdict(NamedTuple):
    """Whether it is us, in one sentence.

    Attributes:
        look: `good`, `warn`, `bad` or `muted`.
        sentence: Without how many fail.
        why: What it rests on.
    """

    look: str
    sentence: str
    why: str

    @property
    def sign(self) -> str:
        """The sign that goes with its look."""
        return {"good": "✓", "warn": "!", "bad": "✗", "muted": "?"}[self.look]


def verdict_of(summary: Mapping[str, Any], see: str) -> Verdict:
    """Say whether it is us, by the outlook and by our senders.

    Args:
        summary: As the API answers it.
        see: Where it stands why what requests meet is not recorded.
    """
    outlook, failing = summary.get("outlook"), failing_of(summary)
    if outlook is None:
        return Verdict(
            "warn" if failing else "muted",
            "Whether it is us is not known.",
            f"What requests meet is not recorded here: {see}.",
        )
    verdict, why = outlook.get("verdict"), f"{outlook.get('explanation')}."
    known = summary.get("senders") or ()
    senders = {sender.get("state") for sender in known}
    if verdict == "us":
        return Verdict("bad", "It is us.", why)
    if verdict == "shared":
        return Verdict("warn", "It is not us: they have something in common.", why)
    if "nobody" in senders:
        sentence = "No process of ours is known to send."
        return Verdict("bad", sentence, "What is to be sent waits until one does.")
    if senders & _UNSEEN:
        which = "Not every sender" if senders - _UNSEEN else "No sender"
        sentence = f"{which} of ours was seen lately."
        return Verdict("warn", sentence, "What one that does not run is to send waits.")
    if "late" in senders:
        return Verdict("warn", "One of our senders is late.", why)
    behind = [s for s in known if (s.get("behind_ms") or 0) >= limits.BEHIND_MS]
    if behind:
        told = (f"{each.get('instance')} is {how_far(each)}" for each in behind)
        which = "Not every sender" if len(behind) < len(known) else "No sender"
        return Verdict("warn", f"{which} of ours keeps up.", f"{'; '.join(told)}.")
    if failing and not outlook.get("can_be_told"):
        return Verdict("warn", "Whether it is us cannot be told yet.", why)
    if failing:
        return Verdict("warn", "Nothing suggests that it is us.", why)
    if unanswered := outlook.get("last_hour", {}).get("unanswered"):
        have = "server has" if unanswered == 1 else "servers have"
        sentence = f"{unanswered:,} {have} accepted no request since one failed."
        return Verdict("warn", sentence, why)
    if not known or not outlook.get("last_hour", {}).get("tried"):
        return Verdict("good", "Nothing is known to be wrong.", why)
    return Verdict("good", "All is well.", why)


def how_many(total: int, failing: int) -> str:
    """Return how many servers fail, in a sentence."""
    if not total:
        return "No server is known yet."
    if failing:
        verb = "is" if failing == 1 else "are"
        return f"{failing:,} of {total:,} servers {verb} failing."
    if total == 1:
        return "The one server that is known is not failing."
    return f"None of {total:,} servers is failing."


def failing_of(summary: Mapping[str, Any]) -> int:
    """Return how many servers fail, by a summary."""
    return sum(summary.get("failing", {}).values())
