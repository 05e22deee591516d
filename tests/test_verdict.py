# SPDX-License-Identifier: Apache-2.0
"""What the stages of a diagnosis mean where they disagree.

That every kind is found is proven by test_e2e_diagnosis.
"""

from functools import partial
from typing import Any

import attr
import pytest

from synapse_federation_admin.diagnosis.findings import (
    AuthenticatedFindings,
    CachedWellKnown,
    ClockFindings,
    Connection,
    ConnectionsFindings,
    KeysFindings,
    SkipReason,
    Stage,
    StageName,
    StageOutcome,
    Stages,
    StoredFindings,
    VersionFindings,
    WellKnownFindings,
    WellKnownRequest,
)
from synapse_federation_admin.diagnosis.verdict import conclude
from synapse_federation_admin.failures.kinds import Facts, Failure, FailureKind, Reason
from synapse_federation_admin.failures.text import Effect, Remark, Verdict

pytestmark = pytest.mark.one_synapse

OK, WARNING = StageOutcome.OK, StageOutcome.WARNING
FAILED, SKIPPED = StageOutcome.FAILED, StageOutcome.SKIPPED

Name, Kind = StageName, FailureKind

BUG = Failure(Kind.INTERNAL)


def stage(
    name: StageName,
    outcome: StageOutcome = OK,
    kind: FailureKind | None = None,
    findings: Any = None,
) -> Stage:
    return Stage(name, outcome, Failure(kind) if kind else None, findings)


def stages(*changed: Stage) -> Stages:
    """Return stages in order, but for some."""
    stored = StoredFindings(is_known=True, status="online")
    found = Stages({name: stage(name) for name in StageName})
    found[Name.STORED] = stage(Name.STORED, findings=stored)
    found.update({s.name: s for s in changed})
    return found


def failed_at(name: StageName, kind: FailureKind, *changed: Stage) -> Stages:
    """Return stages of which one has failed, and those behind it were not tried."""
    order = list(StageName)[:-1]
    behind = [stage(later, SKIPPED) for later in order[order.index(name) + 1 :]]
    return stages(stage(name, FAILED, kind), *behind, *changed)


def file(
    *errors: FailureKind | None,
    outcome: StageOutcome = OK,
    kind: FailureKind | None = None,
    **findings: Any,
) -> Stage:
    """Return the stage of a file, by what the requests for it met."""
    requests = tuple(
        WellKnownRequest("https://a/", 1, error=Failure(error) if error else None)
        for error in errors or (None,)
    )
    seen = WellKnownFindings(requests, 1, **findings)
    return stage(Name.WELL_KNOWN, outcome, kind, seen)


def unreachable(first: FailureKind | None) -> Stage:
    """Return the stage of a file that leads nowhere."""
    return file(first, outcome=WARNING, kind=Kind.WELL_KNOWN_UNREACHABLE)


def cached(is_used: bool = True, differs: bool = True) -> Stage:
    """Return the stage of a file of which Synapse has another answer cached."""
    old = CachedWellKnown("old.example", 1, is_used, differs)
    seen = file(outcome=WARNING, suggests_delegation=True, cached=old)
    return attr.evolve(seen, failure=Failure(Kind.OTHER, Reason.CACHED_DELEGATION))


def connections(*kinds: FailureKind | None, answers: bool = False) -> Any:
    """Return connections to addresses that fail, or that answer well or not."""
    found = []
    for n, kind in enumerate(kinds):
        address = f"192.0.2.{n}"
        error = Failure(kind, facts=Facts(address=address, port=1)) if kind else None
        connection = Connection(address, "a", 1, "a", "a", FAILED, error=error)
        if answers:
            version = VersionFindings(1, status=200, error=error)
            connection = attr.evolve(
                connection, outcome=OK, error=None, version=version
            )
        found.append(connection)
    return ConnectionsFindings(tuple(found))


def keys(
    outcome: StageOutcome, kind: FailureKind | None = None, **findings: Any
) -> Stage:
    return stage(Name.KEYS, outcome, kind, KeysFindings(**findings))


def signed(kind: FailureKind, status: int | None = None) -> Stage:
    """Return the stage of a signed request that failed."""
    seen = AuthenticatedFindings("/path", status)
    return stage(Name.AUTHENTICATED, FAILED, kind, seen)


BACKOFF = StoredFindings(
    True,
    "backing_off",
    failing_since_ts=1,
    next_retry_ts=2,
    backoff_left_ms=31 * 3_600_000,
)


def stored(**changes: Any) -> Stage:
    return stage(Name.STORED, WARNING, findings=attr.evolve(BACKOFF, **changes))


REFUSED, EXPIRED = Kind.CONNECTION_REFUSED, Kind.TLS_EXPIRED
UNREACHABLE_FILE, HTTP_ERROR = Kind.WELL_KNOWN_UNREACHABLE, Kind.HTTP_ERROR
LATE = Kind.RESPONSE_TIMEOUT
SLOW_CLOCK = stage(Name.CLOCK, WARNING, Kind.OTHER, ClockFindings(0, 9, -7_200_000))
ONE_EXPIRED = stage(Name.CONNECTIONS, WARNING, EXPIRED)


Expected = tuple[Effect, FailureKind | None, Reason | None, tuple[Remark, ...]]


def means(
    effect: Effect,
    kind: FailureKind | None = None,
    reason: Reason | None = None,
    *remarks: Remark,
) -> Expected:
    return effect, kind, reason, remarks


stops = partial(means, Effect.STOPS)

CASES: dict[str, tuple[Stages, Expected]] = {
    # A file that cannot be fetched is the cause if there is a web server, and nobody
    # where Synapse looks then.
    "file": (
        failed_at(Name.CONNECTIONS, REFUSED, unreachable(None)),
        stops(UNREACHABLE_FILE, None, Remark.FILE_IS_WHY),
    ),
    "file, expired": (
        failed_at(Name.CONNECTIONS, REFUSED, unreachable(EXPIRED)),
        stops(UNREACHABLE_FILE, None, Remark.FILE_IS_WHY),
    ),
    "no web server": (
        failed_at(Name.CONNECTIONS, REFUSED, unreachable(Kind.CONNECTION_TIMEOUT)),
        stops(REFUSED),
    ),
    "somebody is there": (
        failed_at(Name.CONNECTIONS, EXPIRED, unreachable(None)),
        stops(EXPIRED),
    ),
    # What fails beside a request that got through does not stop it.
    "file, but works": (
        stages(stage(Name.WELL_KNOWN, FAILED, Kind.WELL_KNOWN_INVALID)),
        means(Effect.WORKS, Kind.WELL_KNOWN_INVALID, None, Remark.FOUND_WITHOUT_FILE),
    ),
    "connections, but works": (
        stages(stage(Name.CONNECTIONS, FAILED, Kind.TLS_FAILED)),
        means(Effect.AT_TIMES, Kind.TLS_FAILED),
    ),
    "a failure before a warning": (
        stages(unreachable(None), stage(Name.VERSION, FAILED, HTTP_ERROR)),
        means(Effect.NO_VERSION, HTTP_ERROR),
    ),
    # Keys that are not given out for the same reason as everything is: that reason.
    "same answer to everything": (
        stages(
            *(stage(name, SKIPPED) for name in list(StageName)[1:5]),
            keys(FAILED, Kind.KEYS_MISSING, error=Failure(HTTP_ERROR)),
            signed(HTTP_ERROR),
        ),
        stops(HTTP_ERROR),
    ),
    # One bad address among good ones, also if Synapse has met that.
    "the bad address": (
        stages(ONE_EXPIRED, keys(FAILED, EXPIRED), signed(EXPIRED)),
        means(Effect.SOME_REQUESTS, EXPIRED),
    ),
    "the bad web server": (
        stages(
            stage(
                Name.CONNECTIONS, findings=connections(None, HTTP_ERROR, answers=True)
            ),
            stage(Name.VERSION, WARNING, HTTP_ERROR),
            keys(FAILED, Kind.KEYS_MISSING, status=502, error=Failure(HTTP_ERROR)),
            signed(HTTP_ERROR, 502),
        ),
        means(Effect.SOME_REQUESTS, HTTP_ERROR),
    ),
    "what no address does": (
        stages(ONE_EXPIRED, signed(Kind.REJECTED, 401)),
        stops(Kind.REJECTED),
    ),
    # Where other processes go out, it is not known whether connections are taken.
    "another process": (
        stages(
            *(
                Stage.skip(name, SkipReason.ANOTHER_PROCESS)
                for name in list(StageName)[1:5]
            ),
            keys(FAILED, LATE),
            signed(LATE),
        ),
        stops(LATE, Reason.ANOTHER_PROCESS),
    ),
    # Synapse goes by an older answer; not if the server does not work by the new one.
    "cached": (
        stages(cached(), signed(REFUSED)),
        stops(Kind.OTHER, Reason.CACHED_DELEGATION),
    ),
    "cached, not used": (
        stages(cached(is_used=False), signed(REFUSED)),
        stops(REFUSED, Reason.SIGNED_NOT_ROUTED),
    ),
    "cached, the same": (
        stages(cached(differs=False), signed(REFUSED)),
        stops(REFUSED, Reason.SIGNED_NOT_ROUTED),
    ),
    "cached, but down": (
        failed_at(Name.CONNECTIONS, REFUSED, cached()),
        stops(REFUSED),
    ),
    "cached, but works": (
        stages(cached()),
        means(Effect.WORKS, Kind.OTHER, Reason.CACHED_DELEGATION),
    ),
    # A file that does not come keeps Synapse from asking anything else.
    "late file": (
        stages(unreachable(LATE), signed(LATE)),
        stops(UNREACHABLE_FILE, None, Remark.FILE_IS_WHY),
    ),
    "late file, but an answer": (
        stages(unreachable(LATE), signed(HTTP_ERROR, 500)),
        stops(HTTP_ERROR, Reason.SIGNED_NOT_ROUTED),
    ),
    "file with another fault": (
        stages(unreachable(EXPIRED), signed(LATE)),
        stops(LATE, Reason.SIGNED_UNANSWERED),
    ),
    "page that was meant": (
        stages(
            file(
                outcome=WARNING,
                kind=Kind.WELL_KNOWN_INVALID,
                suggests_delegation=True,
            )
        ),
        means(Effect.WORKS, Kind.WELL_KNOWN_INVALID, None, Remark.FOUND_WITHOUT_FILE),
    ),
    # They reach us, and were not reached.
    "they reach us": (
        failed_at(Name.CONNECTIONS, EXPIRED, stored(reaches_us=True)),
        stops(EXPIRED, None, Remark.THEY_REACH_US),
    ),
    "they are reached": (
        stages(keys(FAILED, Kind.KEYS_EXPIRED, status=200), stored(reaches_us=True)),
        stops(Kind.KEYS_EXPIRED),
    ),
    "clocks, but gone": (
        failed_at(Name.AUTHENTICATED, Kind.GONE, SLOW_CLOCK),
        stops(Kind.GONE, Reason.SIGNED_NOT_ROUTED),
    ),
    # A bug on this side is no stage that failed: then nothing is known, but what is
    # proven stands.
    "not tried": (
        stages(*(stage(name, SKIPPED) for name in list(StageName)[1:8])),
        means(Effect.NOT_KNOWN, Kind.INTERNAL),
    ),
    "bug": (
        stages(*(Stage.failed(name, BUG) for name in list(StageName)[1:8])),
        means(Effect.NOT_KNOWN, Kind.INTERNAL),
    ),
    "bug, but works": (
        stages(*(Stage.failed(name, BUG) for name in list(StageName)[1:6])),
        means(Effect.NONE),
    ),
    "bug beside a failure": (
        stages(
            stage(Name.CONNECTIONS, FAILED, REFUSED),
            Stage.failed(Name.AUTHENTICATED, BUG),
        ),
        stops(REFUSED),
    ),
    "bug, and no version": (
        stages(
            stage(Name.VERSION, FAILED, HTTP_ERROR),
            Stage.failed(Name.AUTHENTICATED, BUG),
        ),
        means(Effect.NOT_KNOWN, Kind.INTERNAL),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_situation(case: str) -> None:
    """Which stage counts, what comes of it, and what exactly is wrong."""
    given, expected = CASES[case]
    found = conclude(given)
    reason = found.failure.reason if found.failure else None
    assert (found.effect, found.kind, reason, found.remarks) == expected


@pytest.mark.parametrize("name", list(StageName)[1:8])
def test_warning(name: StageName) -> None:
    """A warning of any stage but the last makes it degraded."""
    found = conclude(stages(stage(name, WARNING, Kind.OTHER)))
    assert (found.verdict, found.kind) == (Verdict.DEGRADED, Kind.OTHER)


def test_facts() -> None:
    """What other stages know: the cause behind a cached answer, and the clocks."""
    found = conclude(stages(cached(), signed(REFUSED))).failure
    assert found is not None
    assert found.facts.cause == Failure(REFUSED)
    found = conclude(stages(signed(Kind.REJECTED, 401), SLOW_CLOCK)).failure
    assert found is not None
    assert found.facts.ahead_ms == -7_200_000


def test_backoff() -> None:
    """Where requests get through a reset helps; where they do not, it does not."""
    weak = stage(Name.KEYS, WARNING, Kind.KEYS_INVALID)
    for found, verdict, left_ms in (
        (stages(), Verdict.OK, None),
        (stages(stored()), Verdict.OK, 31 * 3_600_000),
        (stages(stored(backoff_left_ms=0)), Verdict.OK, 0),
        (stages(weak, stored()), Verdict.DEGRADED, 31 * 3_600_000),
        (stages(weak), Verdict.DEGRADED, None),
        (failed_at(Name.KEYS, Kind.KEYS_EXPIRED, stored()), Verdict.FAILING, None),
    ):
        situation = conclude(found)
        assert situation.verdict is verdict
        assert situation.backoff_left_ms == left_ms
