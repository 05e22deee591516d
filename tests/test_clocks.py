# SPDX-License-Identifier: Apache-2.0
"""Whose clock is wrong is told by those of several others, never by one."""

import pytest

from synapse_federation_admin.diagnosis.clocks import with_whose_clock
from synapse_federation_admin.diagnosis.findings import ClockFindings, StageOutcome
from synapse_federation_admin.diagnosis.stages import Diagnosis, Stage, StageName
from synapse_federation_admin.failures.kinds import Facts, Failure, FailureKind, Reason
from synapse_federation_admin.failures.situation import Effect, Situation
from synapse_federation_admin.history.owners import owner_of

pytestmark = pytest.mark.one_synapse

HOUR = 3_600_000
NOW = 100 * HOUR


def made(name: str, ahead_ms: int | None, ago_ms: int = 0) -> Diagnosis:
    """Return a diagnosis that has seen a clock, or none."""
    seen = ahead_ms is not None and ClockFindings(0, 0, ahead_ms)
    stage = Stage(StageName.CLOCK, StageOutcome.OK, findings=seen or None)
    return Diagnosis(
        name, NOW - ago_ms, 1, "main", Situation(Effect.NONE), (stage,), None
    )


def untimely(reason: Reason = Reason.VALID_BY_THEIR_CLOCK) -> Situation:
    failure = Failure(FailureKind.TLS_EXPIRED, reason, Facts(ahead_ms=-2 * HOUR))
    return Situation(Effect.STOPS, failure)


LIKE = -2 * HOUR + 20_000
A, B, C = ((f"{label}.org", LIKE) for label in "abc")
UNKNOWN = ("valid_by_their_clock", "unknown")


@pytest.mark.parametrize(
    ("others", "reason", "fault"),
    [
        ([A, B, C], "our_clock", "us"),
        ([("a.org", 0), ("b.org", 900), ("c.org", 0)], "their_clock", "them"),
        # Too few, of one owner, of its own, of long ago, or of two minds.
        ([A, B], *UNKNOWN),
        ([A, ("x.b.org", LIKE), ("y.b.org", LIKE)], *UNKNOWN),
        ([A, B, ("x.late.org", LIKE)], *UNKNOWN),
        ([A, B, ("c.org", LIKE, 2 * HOUR)], *UNKNOWN),
        ([A, B, C, ("d.org", 0)], *UNKNOWN),
        ([A, B, ("c.org", None)], *UNKNOWN),
    ],
)
def test_whose(others: list[tuple[str, int | None]], reason: str, fault: str) -> None:
    """It takes three owners besides, lately, and all of one mind."""
    diagnoses = [made(*each) for each in others]
    found = with_whose_clock(untimely(), "late.org", diagnoses, owner_of, NOW)
    assert found.reason is Reason[reason.upper()]
    assert found.fault is not None
    assert found.fault.value == fault
    is_told = "The clocks of 3 other servers" in found.explanation
    assert is_told is (fault != "unknown")
    # An expired certificate that is so by any clock is not one of these.
    sure = untimely(Reason.OWN_CERTIFICATE)
    assert with_whose_clock(sure, "late.org", diagnoses, owner_of, NOW) is sure
