# SPDX-License-Identifier: Apache-2.0
"""Whether it is us, in one sentence. Pure."""

from collections.abc import Collection

import attr

# The states of senders of which nobody knows that they send.
_UNSEEN = {"gone", "never_seen"}


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Verdict:
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


def not_known(failing: int, see: str) -> Verdict:
    """Say that it is not known, where what requests meet is not recorded.

    Args:
        failing: How many servers fail.
        see: Where it stands why.
    """
    return Verdict(
        "warn" if failing else "muted",
        "Whether it is us is not known.",
        f"What requests meet is not recorded here: {see}.",
    )


def is_it_us(
    verdict: str,
    why: str,
    *,
    can_be_told: bool,
    tried: int,
    failing: int,
    senders: Collection[str],
) -> Verdict:
    """Say whether it is us, by the outlook and by our senders.

    Args:
        verdict: Of the outlook.
        why: What it rests on, in sentences.
        can_be_told: Whether enough was tried to tell.
        tried: How many servers were tried in the last hour.
        failing: How many servers fail.
        senders: The states of the processes that send.
    """
    if verdict == "us":
        return Verdict("bad", "It is us.", why)
    if verdict == "shared":
        return Verdict("warn", "It is not us: they have something in common.", why)
    if "nobody" in senders:
        sentence = "No process of ours is known to send."
        return Verdict("bad", sentence, "What is to be sent waits until one does.")
    if _UNSEEN.intersection(senders):
        is_any_seen = not _UNSEEN.issuperset(senders)
        which = "Not every sender" if is_any_seen else "No sender"
        sentence = f"{which} of ours was seen lately."
        return Verdict("warn", sentence, "What one that does not run is to send waits.")
    if "late" in senders:
        return Verdict("warn", "One of our senders is late.", why)
    if failing and not can_be_told:
        return Verdict("warn", "Whether it is us cannot be told yet.", why)
    if failing:
        return Verdict("warn", "Nothing suggests that it is us.", why)
    if not tried:
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
