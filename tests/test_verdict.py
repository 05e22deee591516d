# SPDX-License-Identifier: Apache-2.0
"""What the stages of a diagnosis mean: for every kind, and where stages disagree."""

from typing import Any

import attr
import pytest

from synapse_federation_admin.diagnosis.findings import (
    AuthenticatedFindings,
    CachedWellKnown,
    Certificate,
    Connection,
    ConnectionsFindings,
    KeysFindings,
    Stage,
    StageName,
    StageOutcome,
    StoredFindings,
    TlsFindings,
    Verdict,
    VersionFindings,
    WellKnownFindings,
    WellKnownRequest,
)
from synapse_federation_admin.diagnosis.verdict import conclude
from synapse_federation_admin.failures.classify import describe
from synapse_federation_admin.failures.kinds import FailureKind
from synapse_federation_admin.failures.text import message_of

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

# A word of what is advised for each.
ADVICE = {
    Kind.INVALID_NAME: "how the name is written",
    Kind.NOT_ALLOWED: "federation_domain_whitelist",
    Kind.IP_BLOCKED: "ip_range_blacklist",
    Kind.WELL_KNOWN_INVALID: "correct the file",
    Kind.WELL_KNOWN_UNREACHABLE: "does not serve the file",
    Kind.DNS_NOT_FOUND: "the resolver of this host",
    Kind.DNS_FAILED: "the resolver of this host",
    Kind.CONNECTION_REFUSED: "their server is up again",
    Kind.CONNECTION_TIMEOUT: "firewall",
    Kind.UNREACHABLE: "routes",
    Kind.TLS_EXPIRED: "to renew it",
    Kind.TLS_NOT_YET_VALID: "clock of this host",
    Kind.TLS_WRONG_NAME: "for which name",
    Kind.TLS_UNTRUSTED: "federation_custom_ca_list",
    Kind.TLS_FAILED: "TLS version",
    Kind.REJECTED: "fetch its key",
    Kind.RATE_LIMITED: "Wait",
    Kind.GONE: "forgotten",
    Kind.HTTP_ERROR: "reverse proxy",
    Kind.RESPONSE_TIMEOUT: "overloaded",
    Kind.INVALID_RESPONSE: "something else",
    Kind.KEYS_MISSING: "/_matrix/key/v2/server",
    Kind.KEYS_INVALID: "/_matrix/key/v2/server",
    Kind.KEYS_EXPIRED: "restarted",
    Kind.OTHER: "log of Synapse",
    Kind.TOO_LARGE: "raise the limit",
}


def stage(
    name: StageName,
    outcome: StageOutcome = OK,
    kind: FailureKind | None = None,
    findings: Any = None,
) -> Stage:
    message = message_of(describe(kind)) if kind else "All is well"
    return Stage(name, outcome, message, kind, findings=findings)


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
    """What stops requests is the verdict, explained, and with advice of its own."""
    found = conclude(failed_at(name, kind))
    assert (found.verdict, found.kind) == (Verdict.FAILING, kind)
    assert found.explanation.endswith(".")
    assert found.explanation.count(".") == 1 + found.explanation.count("well-known")
    assert ADVICE[kind] in found.advice
    if kind is not Kind.RATE_LIMITED:
        assert "Resetting the connection will not help." in found.advice


def unreachable_file(first: FailureKind | None) -> Stage:
    """Return the stage of a file that leads nowhere."""
    error = describe(first) if first else None
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
    assert set(ADVICE) == kinds


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
    if kind is Kind.WELL_KNOWN_UNREACHABLE:
        assert ADVICE[kind] in conclusion.advice


def test_file_beside_a_bad_certificate() -> None:
    """If there is a server where Synapse looks, what is wrong with that counts."""
    found = failed_at(Name.CONNECTIONS, Kind.TLS_EXPIRED)
    found[Name.WELL_KNOWN] = unreachable_file(None)
    assert conclude(found).kind is Kind.TLS_EXPIRED


def test_a_request_got_through() -> None:
    """What fails beside a request that got through makes it degraded, not failing."""
    for name, kind in (
        (Name.WELL_KNOWN, Kind.WELL_KNOWN_INVALID),
        (Name.CONNECTIONS, Kind.TLS_FAILED),
        (Name.VERSION, Kind.HTTP_ERROR),
    ):
        found = conclude(stages(stage(name, FAILED, kind)))
        assert (found.verdict, found.kind) == (Verdict.DEGRADED, kind)
    found = conclude(stages(stage(Name.KEYS, FAILED, Kind.KEYS_EXPIRED)))
    assert found.verdict is Verdict.FAILING


@pytest.mark.parametrize("name", list(StageName)[1:8])
def test_warning(name: StageName) -> None:
    """A warning of any stage but the last makes it degraded."""
    found = conclude(stages(stage(name, WARNING, Kind.OTHER)))
    assert (found.verdict, found.kind) == (Verdict.DEGRADED, Kind.OTHER)
    assert found.explanation.endswith(".")


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
    keys = KeysFindings(error=describe(Kind.HTTP_ERROR))
    found = stages(
        *(stage(name, SKIPPED) for name in list(StageName)[1:5]),
        stage(Name.KEYS, FAILED, Kind.KEYS_MISSING, keys),
        stage(Name.AUTHENTICATED, FAILED, Kind.HTTP_ERROR),
    )
    assert conclude(found).kind is Kind.HTTP_ERROR


def connection(*problems: FailureKind, days_left: int = 9) -> Stage:
    """Return the stage of one connection whose certificate has problems."""
    certificate = Certificate(
        *("CN=a", "CN=b", ("one.example", "two.example"), 2),
        *(0, 0, days_left * 86_400_000, days_left, "ab", 1),
    )
    tls = TlsFindings(
        *(1, "TLSv1.3", "AES", certificate, False, False, True),
        tuple(describe(kind) for kind in problems),
    )
    failed = Connection(
        *("192.0.2.1", "a.example", 8448, "a.example", "a.example", FAILED, 1, tls)
    )
    return stage(
        *(Name.CONNECTIONS, FAILED, problems[0]), ConnectionsFindings((failed,))
    )


def explained(*problems: FailureKind, days_left: int = 9) -> str:
    skipped = [stage(name, SKIPPED) for name in list(StageName)[4:8]]
    found = stages(connection(*problems, days_left=days_left), *skipped)
    return conclude(found).explanation


def test_certificates() -> None:
    """Explanations have dates and names, and all that is wrong."""
    assert explained(Kind.TLS_EXPIRED, days_left=-3) == (
        "Their certificate expired 3 days ago."
    )
    assert explained(Kind.TLS_EXPIRED, days_left=-1) == (
        "Their certificate expired 24 h ago."
    )
    assert explained(Kind.TLS_EXPIRED) == (
        "A certificate in the chain that they send has expired."
    )
    assert explained(Kind.TLS_WRONG_NAME) == (
        "Their certificate is for one.example, two.example, and not for a.example."
    )
    assert explained(Kind.TLS_EXPIRED, Kind.TLS_WRONG_NAME, days_left=-3) == (
        "Their certificate expired 3 days ago and is for another name."
    )


def test_places() -> None:
    """Where nobody answers is said, and which name was not found."""
    failed = Connection("192.0.2.1", "a.example", 8448, "a", "a", FAILED)
    refused = stage(
        *(Name.CONNECTIONS, FAILED, Kind.CONNECTION_REFUSED),
        ConnectionsFindings((failed,)),
    )
    behind = [stage(name, SKIPPED) for name in list(StageName)[4:8]]
    assert conclude(stages(refused, *behind)).explanation == (
        "Their server refuses connections at 192.0.2.1 port 8448."
    )


def versions(*kinds: FailureKind | None) -> ConnectionsFindings:
    """Return connections to addresses that answer well, or not."""
    return ConnectionsFindings(
        tuple(
            Connection(
                *(f"192.0.2.{n}", "a", 1, "a", "a", OK),
                version=VersionFindings(
                    1, status=200, error=describe(kind) if kind else None
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
    assert "works for some" in found.explanation
    # An answer of some addresses that is none.
    keys = KeysFindings(status=502, error=describe(Kind.HTTP_ERROR))
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
    assert found.kind is Kind.REJECTED
    assert "key" not in found.advice
    assert "firewall" in found.advice


def test_only_signed_requests_hang() -> None:
    """Perhaps they wait for our key."""
    signed = AuthenticatedFindings("/path")
    found = conclude(
        stages(stage(Name.AUTHENTICATED, FAILED, Kind.RESPONSE_TIMEOUT, signed))
    )
    assert found.kind is Kind.RESPONSE_TIMEOUT
    assert "not one that is signed" in found.explanation
    assert "fetch its key" in found.advice


def test_other_processes_go_out() -> None:
    """Then a timeout does not tell whether connections are taken."""
    why = "outbound_federation_restricted_to has other processes go out"
    skipped = [
        Stage(name, SKIPPED, why)
        for name in (Name.WELL_KNOWN, Name.ADDRESSES, Name.CONNECTIONS, Name.VERSION)
    ]
    late = [
        stage(name, FAILED, Kind.RESPONSE_TIMEOUT)
        for name in (Name.KEYS, Name.AUTHENTICATED)
    ]
    found = conclude(stages(*skipped, *late))
    assert found.kind is Kind.RESPONSE_TIMEOUT
    assert "is not known here" in found.explanation


def cached(is_used: bool = True, differs: bool = True) -> Stage:
    """Return the stage of a file of which Synapse has another answer cached."""
    findings = WellKnownFindings(
        (WellKnownRequest("https://a/", 1, 200),),
        1,
        m_server="new.example",
        suggests_delegation=True,
        cached=CachedWellKnown("old.example", 1, is_used, differs),
    )
    return stage(Name.WELL_KNOWN, WARNING, Kind.OTHER, findings)


def test_old_answer_is_cached() -> None:
    """If Synapse goes by an older answer, that is the cause, or will be no more."""
    refused = stage(Name.AUTHENTICATED, FAILED, Kind.CONNECTION_REFUSED)
    found = conclude(stages(cached(), refused))
    assert (found.verdict, found.kind) == (Verdict.FAILING, Kind.OTHER)
    assert "older answer about where this server is, old.example" in found.explanation
    assert "there it fails: their server refuses connections" in found.explanation
    assert "restart Synapse" in found.advice
    # If the server does not work by the new one either, that is the cause.
    for other in (cached(is_used=False), cached(differs=False)):
        assert conclude(stages(other, refused)).kind is Kind.CONNECTION_REFUSED
    down = failed_at(Name.CONNECTIONS, Kind.CONNECTION_REFUSED)
    down[Name.WELL_KNOWN] = cached()
    assert conclude(down).kind is Kind.CONNECTION_REFUSED
    # And if requests get through, it may end.
    found = conclude(stages(cached()))
    assert (found.verdict, found.kind) == (Verdict.DEGRADED, Kind.OTHER)
    assert "Requests get through, but: Synapse still uses" in found.explanation


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
    assert "of no use, but it needs none" in found.advice
    meant = attr.evolve(page, findings=attr.evolve(findings, suggests_delegation=True))
    assert conclude(stages(meant)).verdict is Verdict.DEGRADED


def test_not_found_out() -> None:
    """What was not tried at all is not taken for what works."""
    skipped = [stage(name, SKIPPED) for name in list(StageName)[1:8]]
    found = conclude(stages(*skipped))
    assert (found.verdict, found.kind) == (Verdict.DEGRADED, Kind.OTHER)
    assert "could not be found out" in found.explanation


@pytest.mark.parametrize("kind", [Kind.OTHER, Kind.CONNECTION_TIMEOUT])
def test_proxy(kind: FailureKind) -> None:
    """What fails on the way through our own proxy is told as that."""
    failed = Connection(None, "a", 1, "a", "a", FAILED, error=describe(kind))
    found = failed_at(Name.CONNECTIONS, kind)
    found[Name.CONNECTIONS] = stage(
        Name.CONNECTIONS, FAILED, kind, ConnectionsFindings((failed,))
    )
    conclusion = conclude(found)
    assert conclusion.kind is kind
    assert "own proxy" in conclusion.explanation
    assert "https_proxy" in conclusion.advice


def test_keys_that_synapse_accepts() -> None:
    """A warning about keys is not told as if they were wrong."""
    detail = "they are not signed with ed25519:z"
    found = conclude(
        stages(
            attr.evolve(
                stage(Name.KEYS, WARNING, Kind.KEYS_INVALID, KeysFindings(status=200)),
                detail=detail,
            )
        )
    )
    assert found.verdict is Verdict.DEGRADED
    assert detail in found.explanation
    assert "can be verified" not in found.advice


def stored(**changes: Any) -> Stage:
    findings = StoredFindings(
        is_known=True,
        status="backing_off",
        failing_since_ts=1,
        next_retry_ts=2,
        backoff_left_ms=31 * 3_600_000,
    )
    return stage(Name.STORED, WARNING, findings=attr.evolve(findings, **changes))


def test_all_is_well() -> None:
    """Nothing to do; or, if Synapse does not know it yet, a reset."""
    found = conclude(stages())
    assert (found.verdict, found.kind) == (Verdict.OK, None)
    assert found.advice == "There is nothing to do."
    found = conclude(stages(stored()))
    assert (found.verdict, found.kind) == (Verdict.OK, None)
    assert found.advice == (
        "Everything works now; Synapse will not try again for 31 h. "
        "Reset the connection."
    )
    found = conclude(stages(stored(backoff_left_ms=0)))
    assert "only when something is due. Reset the connection." in found.advice


def test_they_reach_us() -> None:
    """That they reach us while we do not reach them is said."""
    said = "; they reach us, but we cannot reach them."
    found = failed_at(Name.CONNECTIONS, Kind.CONNECTION_TIMEOUT)
    found[Name.STORED] = stored(reaches_us=True)
    assert said in conclude(found).explanation
    # Not if it was reached.
    expired = KeysFindings(status=200)
    found = stages(
        stage(Name.KEYS, FAILED, Kind.KEYS_EXPIRED, expired), stored(reaches_us=True)
    )
    assert said not in conclude(found).explanation


def test_clocks() -> None:
    """If they reject us and the clocks differ, that comes first."""
    clock = Stage(Name.CLOCK, WARNING, "Its clock is 2 h behind ours", Kind.OTHER)
    found = stages(stage(Name.AUTHENTICATED, FAILED, Kind.REJECTED), clock)
    assert conclude(found).advice.startswith("Its clock is 2 h behind ours: set")
    found = stages(stage(Name.AUTHENTICATED, FAILED, Kind.GONE), clock)
    assert "clock" not in conclude(found).advice


def test_name_that_is_not_found() -> None:
    """The host that has no address is named: it may be where SRV records lead to."""
    failure = describe(Kind.DNS_NOT_FOUND, "there is no gone.example")
    found = failed_at(Name.ADDRESSES, Kind.DNS_NOT_FOUND)
    found[Name.ADDRESSES] = Stage.of(Name.ADDRESSES, failure)
    assert conclude(found).explanation == (
        "The DNS has no address for this server: there is no gone.example."
    )
