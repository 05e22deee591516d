# SPDX-License-Identifier: Apache-2.0
"""Whose clock is wrong, by those of several others. Pure.

One server that tells another time than this host proves nothing, and one owner may have
any number of servers. Where the servers of several owners tell the same, it is known.
"""

from collections.abc import Callable, Iterable

import attr

from synapse_federation_admin.diagnosis.findings import ClockFindings
from synapse_federation_admin.diagnosis.stages import Diagnosis
from synapse_federation_admin.failures.kinds import Reason
from synapse_federation_admin.failures.situation import Situation

# With these it may be a clock that is wrong.
_DOUBTFUL = (Reason.CLOCK, Reason.VALID_BY_THEIR_CLOCK)

# Of how many others the clocks have to agree, how closely, and how long ago at most
# they were seen.
_SEVERAL = 3
_AGREES_MS = 60_000
_LATELY_MS = 3_600_000


def with_whose_clock(
    found: Situation,
    name: str,
    diagnoses: Iterable[Diagnosis],
    owner_of: Callable[[str], str],
    now_ms: int,
) -> Situation:
    """Tell whose clock is wrong, if clocks differ and several others agree with one.

    Args:
        found: What was found of a server.
        name: The server name.
        diagnoses: What was found of others, the newest last.
        owner_of: Returns whose a server is.
        now_ms: The time, in ms since the epoch.
    """
    failure = found.failure
    if failure is None or failure.reason not in _DOUBTFUL:
        return found
    # Of each owner that which was seen last.
    clocks = {
        owner_of(made.destination): ahead_ms
        for made in diagnoses
        if abs(now_ms - made.checked_ts) <= _LATELY_MS
        if (ahead_ms := _ahead_ms(made)) is not None
    }
    clocks.pop(owner_of(name), None)
    if len(clocks) < _SEVERAL:
        return found
    theirs_ms = failure.facts.ahead_ms
    if all(abs(ahead_ms - theirs_ms) < _AGREES_MS for ahead_ms in clocks.values()):
        reason = Reason.OUR_CLOCK
    elif all(abs(ahead_ms) < _AGREES_MS for ahead_ms in clocks.values()):
        reason = Reason.THEIR_CLOCK
    else:
        return found
    return attr.evolve(found, failure=failure.but(reason, others=len(clocks)))


def _ahead_ms(made: Diagnosis) -> int | None:
    """Return how much the clock of a server is ahead of ours; None: not known."""
    failure = made.situation.failure
    if failure is not None and failure.facts.ahead_ms:
        return failure.facts.ahead_ms
    findings = (stage.findings for stage in made.stages)
    clock = next((each for each in findings if isinstance(each, ClockFindings)), None)
    return clock.ahead_ms if clock else None
