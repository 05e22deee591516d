# SPDX-License-Identifier: Apache-2.0
"""What happened, and when: failures of real requests, outages, and what they share."""

from collections.abc import Mapping
from enum import Enum

import attr

from synapse_federation_admin.failures.kinds import FAILURE_KINDS, UNKNOWN_KIND

# How often it is written of a destination that it answers, at most.
SUCCESS_EVERY_MS = 300_000


@attr.s(slots=True, frozen=True, auto_attribs=True)
class AvailableDay:
    """How much of one day, in UTC, a destination was not failing.

    Attributes:
        begin_ts: When the day begins.
        share: From 0 to 1, of the part of the day that is recorded; None if none is.
    """

    begin_ts: int
    share: float | None


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Availability:
    """How much of the last days a destination was not failing.

    Attributes:
        since_ts: Since when that is recorded, within these days; None if it is not.
        share: From 0 to 1, of the time that is recorded; None if none is.
        days: Each day, the oldest first, the present one last.
    """

    since_ts: int | None
    share: float | None
    days: tuple[AvailableDay, ...]


class CauseType(Enum):
    """What failures may have in common."""

    KIND = "kind"
    ADDRESS = "address"
    ISSUER = "issuer"


@attr.s(slots=True, frozen=True, auto_attribs=True)
class SharedCause:
    """What several destinations that fail have in common.

    Attributes:
        type: What of them.
        value: What it is: a kind, an IP address, the issuer of a certificate.
        destinations: How many of those that fail.
        began: How many of them began to fail in that time.
        worked: How many of the latter had worked before.
    """

    type: CauseType
    value: str
    destinations: int
    began: int
    worked: int


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Tried:
    """The destinations that were tried in the time up to now.

    Attributes:
        window_ms: How long that is.
        failing: How many of them fail.
        began: How many of those began to fail in that time.
        worked: How many of the latter had worked before.
        recent: How many of those that fail began to within a day, and had worked.
        succeeded: How many do not fail.
        ever_succeeded: Whether any destination has ever answered, as far as is known.
        looked: Of how many that began to fail it is known where they lead.
        causes: What those that fail have in common, the most common first.
    """

    window_ms: int
    failing: int
    began: int
    worked: int
    recent: int
    succeeded: int
    ever_succeeded: bool
    looked: int = 0
    causes: tuple[SharedCause, ...] = ()

    @property
    def total(self) -> int:
        """How many destinations were tried."""
        return self.failing + self.succeeded

    @property
    def share(self) -> float | None:
        """Which share of them fails; None if none was tried."""
        return self.failing / self.total if self.total else None


class OutlookVerdict(Enum):
    """Whose fault it is likely to be when servers fail."""

    # Nothing out of the ordinary.
    NORMAL = "normal"

    # This homeserver's: its resolver, its network, its clock.
    US = "us"

    # That of something which several other servers share.
    SHARED = "shared"


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Outlook:
    """Whether servers began to fail together, and what they share.

    Attributes:
        verdict: In a word.
        explanation: In a sentence.
        tried: The last hour.
        lately: The last quarter of an hour.
    """

    verdict: OutlookVerdict
    explanation: str
    tried: Tried
    lately: Tried


def by_every_kind(failing: int, known: Mapping[str, int]) -> dict[str, int]:
    """Return how many destinations fail with each of FAILURE_KINDS.

    Args:
        failing: How many fail.
        known: Of those with a known kind, how many; the others have UNKNOWN_KIND.
    """
    found = {kind: known.get(kind, 0) for kind in FAILURE_KINDS}
    found[UNKNOWN_KIND] = max(0, failing - sum(known.values()))
    return found
