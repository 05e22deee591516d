# SPDX-License-Identifier: Apache-2.0
"""What the stages of a diagnosis mean: for every kind, and where stages disagree."""

from typing import Any

import attr
import pytest

from synapse_federation_admin.diagnosis.findings import (
    AddressesFindings,
    AuthenticatedFindings,
    CachedWellKnown,
    ClockFindings,
    Conclusion,
    Connection,
    ConnectionsFindings,
    KeysFindings,
    SkipReason,
    Stage,
    StageName,
    StageOutcome,
    StoredFindings,
    Verdict,
    VersionFindings,
    WellKnownFindings,
    WellKnownRequest,
)
from synapse_federation_admin.diagnosis.verdict import conclude
from synapse_federation_admin.failures.kinds import Facts, Failure, FailureKind, Reason
from synapse_federation_admin.failures.text import Effect, Remark

pytestmark = pytest.mark.one_synapse

OK, WARNING = StageOutcome.OK, StageOutcome.WARNING
FAILED, SKIPPED = StageOutcome.FAILED, StageOutcome.SKIPPED

Name, Kind = StageName, FailureKind

# Which stage finds it.
STAGES = {
    Name.NAME: (Kind.INVALID_NAME, Kind.NOT_ALLOWED),
    Name.WELL_KNOWN: (Kind.WELL_KNOWN_INVALID,),
    Name.ADDRESSES: (Kind.DNS_NOT_FOUND, Kind.DNS_FAILED, Kind.IP_BLOCKED),
    Name.CONNECTIONS: (
        *(Kind.CONNECTION_REFUSED, Kind.CONNECTION_TIMEOUT, Kind.UNREACHABLE),
        *(Kind.TLS_EXPIRED, Kind.TLS_NOT_YET_VALID, Kind.TLS_WRONG_NAME),
        *(Kind.TLS_UNTRUSTED, Kind.TLS_FAILED, Kind.OTHER),
    ),
    Name.KEYS: (Kind.KEYS_MISSING, Kind.KEYS_INVALID, Kind.KEYS_EXPIRED),
    Name.AUTHENTICATED: (
        *(Kind.REJECTED, Kind.RATE_LIMITED, Kind.GONE, Kind.HTTP_ERROR),
        *(Kind.RESPONSE_TIMEOUT, Kind.INVALID_RESPONSE, Kind.TOO_LARGE),
    ),
}


def stage(
    name: StageName,
    outcome: StageOutcome = OK,
    kind: FailureKind | None = None,
    findings: Any = None,
) -> Stage:
    return Stage(name, outcome, Failure(kind) if kind else None, findings)


def stages(*changed: Stage) -> dict[StageName, Stage]:
    """Return stages in order, but for some."""
    stored = StoredFindings(is_known=True, status="online")
    found = {name: stage(name) for name in StageName}
    found[Name.STORED] = stage(Name.STORED, findings=stored)
    return found | {s.name: s for s in changed}


def failed_at(name: StageName, kind: FailureKind) -> dict[StageName, Stage]:
    """Return stages of which one has failed, and those behind it were not tried."""
    order = list(StageName)
    behind = [
        stage(later, SKIPPED)
        for later in order[order.index(name) + 1 :]
        if later is not Name.STORED
    ]
    return stages(stage(name, FAILED, kind), *behind)


CASES = [(name, kind) for name, kinds in STAGES.items() for kind in kinds]


@pytest.mark.parametrize(("name", "kind"), CASES, ids=lambda value: value.value)
def test_kind(name: StageName, kind: FailureKind) -> None:
    """What stops requests is the verdict."""
    found = conclude(failed_at(name, kind))
    assert (found.verdict, found.kind) == (Verdict.FAILING, kind)
    assert found.situation.effect is Effect.STOPS


def unreachable_file(first: FailureKind | None) -> Stage:
    """Return the stage of a file that leads nowhere."""
    error = Failure(first) if first else None
    requests = (WellKnownRequest("https://a/", 1, error=error),)
    return stage(
        Name.WELL_KNOWN,
        WARNING,
        Kind.WELL_KNOWN_UNREACHABLE,
        WellKnownFindings(requests, 1),
    )


def test_every_kind_is_tested() -> None:
    """No kind is without a case here, but for the one below."""
    kinds = set(Kind) - {Kind.INTERNAL}
    assert {kind for _, kind in CASES} | {Kind.WELL_KNOWN_UNREACHABLE} == kinds


@pytest.mark.parametrize(
    ("first", "kind"),
    [
        (None, Kind.WELL_KNOWN_UNREACHABLE),
        (Kind.TLS_EXPIRED, Kind.WELL_KNOWN_UNREACHABLE),
        (Kind.CONNECTION_TIMEOUT, Kind.CONNECTION_REFUSED),
    ],
)
def test_file_that_cannot_be_fetched(
    first: FailureKind | None, kind: FailureKind
) -> None:
    """It is the cause if there is a web server, and nobody where Synapse looks then."""
    found = failed_at(Name.CONNECTIONS, Kind.CONNECTION_REFUSED)
    found[Name.WELL_KNOWN] = unreachable_file(first)
    conclusion = conclude(found)
    assert (conclusion.verdict, conclusion.kind) == (Verdict.FAILING, kind)
    is_why = kind is Kind.WELL_KNOWN_UNREACHABLE
    assert (Remark.FILE_IS_WHY in conclusion.situation.remarks) is is_why


def test_file_beside_a_bad_certificate() -> None:
    """If there is a server where Synapse looks, what is wrong with that counts."""
    found = failed_at(Name.CONNECTIONS, Kind.TLS_EXPIRED)
    found[Name.WELL_KNOWN] = unreachable_file(None)
    assert conclude(found).kind is Kind.TLS_EXPIRED


def test_a_request_got_through() -> None:
    """What fails beside a request that got through makes it degraded, not failing."""
    for name, kind, effect in (
        (Name.WELL_KNOWN, Kind.WELL_KNOWN_INVALID, Effect.WORKS),
        (Name.CONNECTIONS, Kind.TLS_FAILED, Effect.AT_TIMES),
        (Name.VERSION, Kind.HTTP_ERROR, Effect.NO_VERSION),
    ):
        found = conclude(stages(stage(name, FAILED, kind)))
        assert (found.verdict, found.kind) == (Verdict.DEGRADED, kind)
        assert found.situation.effect is effect
    found = conclude(stages(stage(Name.KEYS, FAILED, Kind.KEYS_EXPIRED)))
    assert found.verdict is Verdict.FAILING


@pytest.mark.parametrize("name", list(StageName)[1:8])
def test_warning(name: StageName) -> None:
    """A warning of any stage but the last makes it degraded."""
    found = conclude(stages(stage(name, WARNING, Kind.OTHER)))
    assert (found.verdict, found.kind) == (Verdict.DEGRADED, Kind.OTHER)


def test_failures_before_warnings() -> None:
    """A stage that failed is told before one that warns, though it comes later."""
    found = conclude(
        stages(
            stage(Name.WELL_KNOWN, WARNING, Kind.WELL_KNOWN_UNREACHABLE),
            stage(Name.VERSION, FAILED, Kind.HTTP_ERROR),
        )
    )
    assert found.kind is Kind.HTTP_ERROR


def test_same_answer_to_everything() -> None:
    """Keys that are not given out for the same reason as everything is: that reason."""
    keys = KeysFindings(error=Failure(Kind.HTTP_ERROR))
    found = stages(
        *(stage(name, SKIPPED) for name in list(StageName)[1:5]),
        stage(Name.KEYS, FAILED, Kind.KEYS_MISSING, keys),
        stage(Name.AUTHENTICATED, FAILED, Kind.HTTP_ERROR),
    )
    assert conclude(found).kind is Kind.HTTP_ERROR


def reason_of(found: Conclusion) -> Reason | None:
    return found.situation.failure.reason if found.situation.failure else None


def test_places() -> None:
    """Where nobody answers is said, of how many, and whether others fail otherwise."""

    def failed(address: str, kind: FailureKind) -> Connection:
        error = Failure(kind, facts=Facts(address=address, port=1))
        return Connection(address, "a", 1, "a", "a", FAILED, error=error)

    refused = [failed(f"192.0.2.{n}", Kind.CONNECTION_REFUSED) for n in range(3)]
    late = failed("192.0.2.9", Kind.CONNECTION_TIMEOUT)
    for bad, remarks in ((refused, ()), ([*refused, late], (Remark.OTHER_ADDRESSES,))):
        found = failed_at(Name.CONNECTIONS, Kind.CONNECTION_REFUSED)
        found[Name.CONNECTIONS] = stage(
            *(Name.CONNECTIONS, FAILED, Kind.CONNECTION_REFUSED),
            ConnectionsFindings(tuple(bad)),
        )
        situation = conclude(found).situation
        assert situation.failure is not None
        facts = situation.failure.facts
        assert (facts.address, facts.port, facts.more) == ("192.0.2.0", 1, 2)
        assert situation.remarks == remarks


def test_may_lack_delegation() -> None:
    """A web server that answers 404 beside a closed port may lack the file."""
    page = (WellKnownRequest("https://a/", 1, 404),)
    found = failed_at(Name.CONNECTIONS, Kind.CONNECTION_REFUSED)
    found[Name.WELL_KNOWN] = stage(Name.WELL_KNOWN, findings=WellKnownFindings(page, 1))
    found[Name.ADDRESSES] = stage(
        Name.ADDRESSES, findings=AddressesFindings("a", "6", ())
    )
    assert reason_of(conclude(found)) is Reason.MAY_LACK_DELEGATION


def versions(*kinds: FailureKind | None) -> ConnectionsFindings:
    """Return connections to addresses that answer well, or not."""
    return ConnectionsFindings(
        tuple(
            Connection(
                *(f"192.0.2.{n}", "a", 1, "a", "a", OK),
                version=VersionFindings(
                    1, status=200, error=Failure(kind) if kind else None
                ),
            )
            for n, kind in enumerate(kinds)
        )
    )


def test_synapse_met_the_bad_address() -> None:
    """One bad address among good ones is degraded, also if Synapse has met that."""
    asked = [
        stage(name, FAILED, Kind.TLS_EXPIRED)
        for name in (Name.KEYS, Name.AUTHENTICATED)
    ]
    bad = stage(Name.CONNECTIONS, WARNING, Kind.TLS_EXPIRED)
    found = conclude(stages(bad, *asked))
    assert (found.verdict, found.kind) == (Verdict.DEGRADED, Kind.TLS_EXPIRED)
    assert found.situation.effect is Effect.SOME_REQUESTS
    # An answer of some addresses that is none.
    keys = KeysFindings(status=502, error=Failure(Kind.HTTP_ERROR))
    found = conclude(
        stages(
            stage(Name.CONNECTIONS, findings=versions(None, Kind.HTTP_ERROR)),
            stage(Name.VERSION, WARNING, Kind.HTTP_ERROR),
            stage(Name.KEYS, FAILED, Kind.KEYS_MISSING, keys),
            stage(Name.AUTHENTICATED, FAILED, Kind.HTTP_ERROR),
        )
    )
    assert (found.verdict, found.kind) == (Verdict.DEGRADED, Kind.HTTP_ERROR)
    # But what none of the addresses does, is not about addresses.
    rejected = stage(Name.AUTHENTICATED, FAILED, Kind.REJECTED)
    found = conclude(stages(bad, rejected))
    assert (found.verdict, found.kind) == (Verdict.FAILING, Kind.REJECTED)


def test_version_is_shut() -> None:
    """A homeserver that does not tell its version, and rejects us, rejects us."""
    found = conclude(
        stages(
            stage(Name.VERSION, FAILED, Kind.HTTP_ERROR),
            stage(Name.KEYS, OK, findings=KeysFindings(status=200)),
            stage(Name.AUTHENTICATED, FAILED, Kind.REJECTED),
        )
    )
    assert found.kind is Kind.REJECTED


def test_rejects_everything() -> None:
    """If also what is not signed is rejected, our key is not the matter."""
    found = conclude(
        stages(
            stage(
                *(Name.VERSION, FAILED, Kind.REJECTED),
                VersionFindings(1, status=403),
            ),
            stage(Name.AUTHENTICATED, FAILED, Kind.REJECTED),
        )
    )
    assert found.situation.failure == Failure(Kind.REJECTED, Reason.UNSIGNED_TOO)


def test_only_signed_requests_hang() -> None:
    """Perhaps they wait for our key."""
    signed = AuthenticatedFindings("/path")
    found = conclude(
        stages(stage(Name.AUTHENTICATED, FAILED, Kind.RESPONSE_TIMEOUT, signed))
    )
    assert reason_of(found) is Reason.SIGNED_UNANSWERED


def test_other_processes_go_out() -> None:
    """Then a timeout does not tell whether connections are taken."""
    skipped = [
        Stage.skip(name, SkipReason.ANOTHER_PROCESS)
        for name in (Name.WELL_KNOWN, Name.ADDRESSES, Name.CONNECTIONS, Name.VERSION)
    ]
    late = [
        stage(name, FAILED, Kind.RESPONSE_TIMEOUT)
        for name in (Name.KEYS, Name.AUTHENTICATED)
    ]
    found = conclude(stages(*skipped, *late))
    assert found.kind is Kind.RESPONSE_TIMEOUT
    assert reason_of(found) is Reason.ANOTHER_PROCESS


def cached(is_used: bool = True, differs: bool = True) -> Stage:
    """Return the stage of a file of which Synapse has another answer cached."""
    findings = WellKnownFindings(
        (WellKnownRequest("https://a/", 1, 200),),
        1,
        m_server="new.example",
        suggests_delegation=True,
        cached=CachedWellKnown("old.example", 1, is_used, differs),
    )
    return Stage.failed(
        Name.WELL_KNOWN,
        Failure(Kind.OTHER, Reason.CACHED_DELEGATION),
        findings,
        WARNING,
    )


def test_old_answer_is_cached() -> None:
    """If Synapse goes by an older answer, that is the cause, or will be no more."""
    refused = stage(Name.AUTHENTICATED, FAILED, Kind.CONNECTION_REFUSED)
    found = conclude(stages(cached(), refused))
    assert (found.verdict, found.kind) == (Verdict.FAILING, Kind.OTHER)
    failure = found.situation.failure
    assert failure is not None
    assert failure.reason is Reason.CACHED_DELEGATION
    assert failure.facts.cause == Failure(Kind.CONNECTION_REFUSED)
    # If the server does not work by the new one either, that is the cause.
    for other in (cached(is_used=False), cached(differs=False)):
        assert conclude(stages(other, refused)).kind is Kind.CONNECTION_REFUSED
    down = failed_at(Name.CONNECTIONS, Kind.CONNECTION_REFUSED)
    down[Name.WELL_KNOWN] = cached()
    assert conclude(down).kind is Kind.CONNECTION_REFUSED
    # And if requests get through, it may end.
    found = conclude(stages(cached()))
    assert (found.verdict, found.kind) == (Verdict.DEGRADED, Kind.OTHER)
    assert reason_of(found) is Reason.CACHED_DELEGATION


def test_synapse_waits_for_the_file() -> None:
    """A file that does not come keeps Synapse from asking anything else."""
    late = AuthenticatedFindings("/path")
    asked = stage(Name.AUTHENTICATED, FAILED, Kind.RESPONSE_TIMEOUT, late)
    found = conclude(stages(unreachable_file(Kind.RESPONSE_TIMEOUT), asked))
    assert (found.verdict, found.kind) == (
        Verdict.FAILING,
        Kind.WELL_KNOWN_UNREACHABLE,
    )
    # Not if it has come to an answer.
    answered = attr.evolve(asked, findings=AuthenticatedFindings("/path", 500))
    found = conclude(stages(unreachable_file(Kind.RESPONSE_TIMEOUT), answered))
    assert found.kind is Kind.RESPONSE_TIMEOUT
    # Nor if it is another fault of the file.
    found = conclude(stages(unreachable_file(Kind.TLS_EXPIRED), asked))
    assert found.kind is Kind.RESPONSE_TIMEOUT


def test_page_of_a_web_site() -> None:
    """A page that is no file of delegation does no harm where there is none."""
    findings = WellKnownFindings((WellKnownRequest("https://a/", 1, 200),), 1)
    page = stage(Name.WELL_KNOWN, WARNING, Kind.WELL_KNOWN_INVALID, findings)
    found = conclude(stages(page))
    assert (found.verdict, found.kind) == (Verdict.OK, None)
    assert found.situation.remarks == (Remark.HARMLESS_PAGE,)
    meant = attr.evolve(page, findings=attr.evolve(findings, suggests_delegation=True))
    assert conclude(stages(meant)).verdict is Verdict.DEGRADED


def test_not_found_out() -> None:
    """What was not tried at all is not taken for what works."""
    skipped = [stage(name, SKIPPED) for name in list(StageName)[1:8]]
    found = conclude(stages(*skipped))
    assert (found.verdict, found.kind) == (Verdict.UNKNOWN, Kind.INTERNAL)


def test_keys() -> None:
    """What only the request for keys meets is told as that."""
    error = Failure(Kind.RESPONSE_TIMEOUT)
    keys = KeysFindings(error=error)
    found = conclude(stages(stage(Name.KEYS, FAILED, error.kind, keys)))
    assert reason_of(found) is Reason.KEYS_REQUEST


def stored(**changes: Any) -> Stage:
    findings = StoredFindings(
        is_known=True,
        status="backing_off",
        failing_since_ts=1,
        next_retry_ts=2,
        backoff_left_ms=31 * 3_600_000,
    )
    return stage(Name.STORED, WARNING, findings=attr.evolve(findings, **changes))


def test_backoff() -> None:
    """Where requests get through a reset helps; where they do not, it does not."""
    works, weak = stages(stored()), stages(stage(Name.KEYS, WARNING, Kind.KEYS_INVALID))
    for found, verdict, left_ms in (
        (stages(), Verdict.OK, None),
        (works, Verdict.OK, 31 * 3_600_000),
        (stages(stored(backoff_left_ms=0)), Verdict.OK, 0),
        (weak | {Name.STORED: stored()}, Verdict.DEGRADED, 31 * 3_600_000),
        (weak, Verdict.DEGRADED, None),
        (
            failed_at(Name.KEYS, Kind.KEYS_EXPIRED) | {Name.STORED: stored()},
            Verdict.FAILING,
            None,
        ),
    ):
        conclusion = conclude(found)
        assert conclusion.verdict is verdict
        assert conclusion.situation.backoff_left_ms == left_ms


def test_they_reach_us() -> None:
    """That they reach us while we do not reach them is said."""
    found = failed_at(Name.CONNECTIONS, Kind.CONNECTION_TIMEOUT)
    found[Name.STORED] = stored(reaches_us=True)
    assert Remark.THEY_REACH_US in conclude(found).situation.remarks
    # Not if it was reached.
    expired = KeysFindings(status=200)
    found = stages(
        stage(Name.KEYS, FAILED, Kind.KEYS_EXPIRED, expired), stored(reaches_us=True)
    )
    assert conclude(found).situation.remarks == ()


def test_clocks() -> None:
    """If they reject us and the clocks differ, that is the reason."""
    clock = stage(Name.CLOCK, WARNING, Kind.OTHER, ClockFindings(0, 9, -7_200_000))
    found = stages(stage(Name.AUTHENTICATED, FAILED, Kind.REJECTED), clock)
    failure = conclude(found).situation.failure
    assert failure is not None
    assert (failure.reason, failure.facts.ahead_ms) == (Reason.CLOCK, -7_200_000)
    found = stages(stage(Name.AUTHENTICATED, FAILED, Kind.GONE), clock)
    assert reason_of(conclude(found)) is None


def test_this_module_fails() -> None:
    """A bug on this side is no stage that failed: then nothing is known."""
    bug = Failure(Kind.INTERNAL)
    broken = {
        name: Stage.failed(name, bug)
        for name in StageName
        if name not in (Name.NAME, Name.STORED)
    }
    assert {found.outcome for found in broken.values()} == {SKIPPED}
    found = conclude(stages(*broken.values()))
    assert (found.verdict, found.kind) == (Verdict.UNKNOWN, Kind.INTERNAL)
    # What is proven stands.
    del broken[Name.AUTHENTICATED]
    assert conclude(stages(*broken.values())).verdict is Verdict.OK
    refused = stage(Name.CONNECTIONS, FAILED, Kind.CONNECTION_REFUSED)
    asked = Stage.failed(Name.AUTHENTICATED, bug)
    assert conclude(stages(refused, asked)).kind is Kind.CONNECTION_REFUSED
    # That it does not tell its version proves nothing.
    hidden = stage(Name.VERSION, FAILED, Kind.HTTP_ERROR)
    assert conclude(stages(hidden, asked)).verdict is Verdict.UNKNOWN
