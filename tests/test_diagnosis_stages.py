# SPDX-License-Identifier: Apache-2.0
"""The pure parts of the stages of a diagnosis: what is made of what was seen.

What real servers show is in test_e2e_diagnosis: here is what they cannot.
"""

import json
from typing import Any

import pytest
from service_identity.exceptions import DNSMismatch, VerificationError
from service_identity.hazmat import DNS_ID
from twisted.web.http_headers import Headers

from synapse_federation_admin.destinations.backlog import Backlog
from synapse_federation_admin.destinations.values import Destination
from synapse_federation_admin.diagnosis.answers import Answer, check_clock, date_of
from synapse_federation_admin.diagnosis.connections import (
    conclude as conclude_connections,
    plan,
    without_route,
)
from synapse_federation_admin.diagnosis.findings import (
    Certificate,
    ClockFindings,
    Connection,
    ConnectionsFindings,
    KeysFindings,
    StageOutcome,
    StoredFindings,
    VersionFindings,
)
from synapse_federation_admin.diagnosis.requests import read_keys
from synapse_federation_admin.diagnosis.resolution import (
    Target,
    TargetAddress,
    WellKnownFindings,
    WellKnownRequest,
)
from synapse_federation_admin.diagnosis.stages import (
    SkipReason,
    Stage,
    StageName,
    Stages,
)
from synapse_federation_admin.diagnosis.stored import check_stored
from synapse_federation_admin.diagnosis.tls import problems_of
from synapse_federation_admin.diagnosis.well_known import Fetched, conclude
from synapse_federation_admin.failures.kinds import Facts, Failure, FailureKind, Reason
from synapse_federation_admin.failures.situation import LastRequest
from synapse_federation_admin.homeserver.errors import UntrustedCertificateError
from synapse_federation_admin.homeserver.server_name import ServerName
from synapse_federation_admin.playground.events import Identity
from synapse_federation_admin.storage.records import Recorded, RecordedFailure

pytestmark = pytest.mark.one_synapse

NAME = "a.example"
NOW = 1_800_000_000_000
HOUR = 3_600_000

OK, WARNING = StageOutcome.OK, StageOutcome.WARNING
FAILED, SKIPPED = StageOutcome.FAILED, StageOutcome.SKIPPED


# The well-known file.


def fetched(body: Any, content_type: str = "application/json") -> Fetched:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = WellKnownRequest("https://a/", 1, 200, content_type)
    return (request,), Answer(200, Headers(), content), None


def absent() -> Fetched:
    return (WellKnownRequest("https://a/", 1, 404),), None, None


def broken() -> Fetched:
    problem = Failure(FailureKind.WELL_KNOWN_UNREACHABLE, facts=Facts(status=502))
    return (WellKnownRequest("https://a/", 1, 502),), None, problem


CACHED = ("old.example", NOW + HOUR, True)
STALE = ("old.example", NOW, False)
ABSENT = (None, NOW + HOUR, True)


@pytest.mark.parametrize(
    ("file", "cached", "expected"),
    [
        (fetched({"m.server": "b/c"}), None, "failed well_known_invalid b/c b/c"),
        (fetched({"m.server": ""}), None, "warning well_known_invalid - -"),
        (fetched(b"\xff"), None, "warning well_known_invalid - -"),
        (fetched(b"[NaN]"), None, "warning well_known_invalid - -"),
        # And what is cached, and used unasked.
        (fetched({"m.server": "old.example"}), CACHED, "ok - old.example old.example"),
        (fetched({"m.server": "b"}), CACHED, "warning other b old.example"),
        (fetched({"m.server": "b"}), ABSENT, "warning other b -"),
        (absent(), CACHED, "warning other - old.example"),
        (absent(), ABSENT, "ok - - -"),
        (broken(), CACHED, "warning well_known_unreachable old.example old.example"),
        # Or only if the file cannot be fetched.
        (fetched({"m.server": "b"}), STALE, "ok - b b"),
        (absent(), STALE, "ok - - -"),
        (broken(), STALE, "warning well_known_unreachable old.example old.example"),
    ],
)
def test_file(file: Fetched, cached: Any, expected: str) -> None:
    """What a file means: the outcome, its kind, where it leads, where Synapse goes."""
    found = conclude(file, lifetime_ms=1, cached=cached, now_ms=NOW)
    stage = found.stage
    kind = stage.kind.value if stage.kind else None
    words = (stage.outcome.value, kind, found.delegated_to, found.used)
    assert " ".join(word or "-" for word in words) == expected
    assert isinstance(stage.findings, WellKnownFindings)
    assert stage.findings.delegated_to == found.delegated_to
    if kind == "other":
        assert stage.failure
        assert stage.failure.facts.left_ms == HOUR


def test_no_file() -> None:
    """That there is no file is said only where somebody has answered so."""
    error = Failure(FailureKind.DNS_NOT_FOUND)
    silent = (WellKnownRequest("https://a/", 1, error=error),), None, None
    for file, said in ((absent(), "No such file: "), (silent, "Not to be had: ")):
        found = conclude(file, lifetime_ms=1, cached=None, now_ms=NOW)
        assert found.stage.message.startswith(said)


def test_late_file() -> None:
    """Synapse waits for a file that does not come, unless it has an answer cached."""
    error = Failure(FailureKind.RESPONSE_TIMEOUT)
    request = WellKnownRequest("https://a/", 1, error=error)
    problem = Failure(FailureKind.WELL_KNOWN_UNREACHABLE)
    late = (request,), None, problem
    for cached, is_late in (
        (None, True),
        ((None, NOW, True), False),
        ((None, NOW, False), True),
        (CACHED, False),
        (STALE, False),
    ):
        found = conclude(late, lifetime_ms=1, cached=cached, now_ms=NOW)
        assert found.is_late is is_late, cached


# Keys.


def keys(**changes: Any) -> dict[str, Any]:
    identity = Identity(NAME)
    content = {**identity.server_keys(), **changes}
    content.pop("signatures")
    content = {k: v for k, v in content.items() if v is not None}
    return identity.signed(content)


def judge(
    body: Any, stored: dict[str, str] | None = None
) -> tuple[str, Reason | None, KeysFindings]:
    stage = read_keys(
        NAME, body, {} if stored is None else stored, now_ms=1, date_ts=None
    )
    assert isinstance(stage.findings, KeysFindings)
    reason = stage.failure.reason if stage.failure else None
    return stage.outcome.value, reason, stage.findings


def test_good_keys() -> None:
    """Keys in order, with or without old ones; and one of two that signs."""
    assert judge(keys())[:2] == ("ok", None)
    assert judge(keys(old_verify_keys=None))[:2] == ("ok", None)
    outcome, reason, findings = judge(with_others(1))
    assert (outcome, reason) == ("warning", Reason.KEY_NOT_SIGNING)
    assert [key.is_self_signed for key in findings.keys] == [True, False]


def with_others(count: int) -> dict[str, Any]:
    """Return keys with more keys, which do not sign, before the one that does."""
    others = {
        f"ed25519:n{n}": next(
            iter(Identity(NAME).server_keys()["verify_keys"].values())
        )
        for n in range(count)
    }
    identity = Identity(NAME)
    content = identity.server_keys()
    content.pop("signatures")
    content["verify_keys"] = {**others, **content["verify_keys"]}
    return identity.signed(content)


def test_key_that_signs_is_found() -> None:
    """Also among many, of which some only are looked at."""
    outcome, _, findings = judge(with_others(40))
    assert outcome == "warning"
    assert findings.keys[0].is_self_signed
    assert (len(findings.keys), findings.keys_total) == (20, 41)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (keys(server_name=1), Reason.NO_SERVER_NAME),
        (keys(valid_until_ts=True), Reason.VALID_UNTIL_MISSING),
        (keys(valid_until_ts=0), None),
        ({**keys(), "x": float("nan")}, Reason.NOT_JSON),
        (keys(old_verify_keys={"ed25519:o": 1}), Reason.KEY_UNREADABLE),
    ],
)
def test_bad_keys(body: Any, reason: Reason | None) -> None:
    """What is wrong with keys is told."""
    assert judge(body)[:2] == ("failed", reason)


def test_stored_keys() -> None:
    """A key that Synapse has stored is the same, or another, or not known."""
    body = keys()
    ((key_id, value),) = body["verify_keys"].items()
    assert judge(body, {key_id: value["key"]})[2].keys[0].stored is True
    outcome, reason, findings = judge(body, {key_id: "AAAA"})
    assert (outcome, findings.keys[0].stored) == ("warning", False)
    assert reason is Reason.OTHER_KEY_STORED
    assert judge(body, {"ed25519:z": "AAAA"})[2].keys[0].stored is None
    unknown = read_keys(NAME, body, None, now_ms=1, date_ts=None).findings
    assert isinstance(unknown, KeysFindings)
    assert (unknown.stored_total, unknown.keys[0].stored) == (None, None)


# Answers and clocks.


@pytest.mark.parametrize(
    ("date", "ts"),
    [
        (b"Thu, 01 Jan 1970 00:00:01 GMT", 1000),
        (b"Thu, 01 Jan 1970 01:00:01 +0100", 1000),
        (b"Thu, 01 Jan 1970 00:00:01", 1000),
        (b"yesterday", None),
        (b"\xff", None),
        (b"Thu, 99 Jan 1970 00:00:01 GMT", None),
        (b"Thu, 01 Jan 99999999999 00:00:01 GMT", None),
        (None, None),
    ],
)
def test_date(date: bytes | None, ts: int | None) -> None:
    """A Date, or what is none, or that of a cache."""
    headers = Headers({b"Date": [date]} if date is not None else {})
    assert date_of(headers) == ts
    headers.addRawHeader(b"Age", b"9")
    assert date_of(headers) is None


@pytest.mark.parametrize(
    ("ahead_ms", "outcome", "found_ms"),
    [
        (0, OK, 0),
        (-1900, OK, 0),
        (59_000, OK, 59_000),
        (-61_000, WARNING, -61_000),
        (2 * HOUR, WARNING, 2 * HOUR),
    ],
)
def test_clock(ahead_ms: int, outcome: StageOutcome, found_ms: int) -> None:
    """A minute is a warning, seconds are not."""
    version = VersionFindings(1, date_ts=NOW + ahead_ms, received_ts=NOW)
    told = Stage(StageName.VERSION, OK, findings=version)
    stage = check_clock(Stages({StageName.VERSION: told}))
    assert stage.outcome is outcome
    assert isinstance(stage.findings, ClockFindings)
    assert stage.findings.ahead_ms == found_ms
    assert (stage.failure is None) is (outcome is OK)
    assert check_clock(Stages()).outcome is SKIPPED


def certificate(left_ms: int) -> Certificate:
    return Certificate(
        "CN=a",
        "CN=b",
        ("one.example", "two.example"),
        2,
        0,
        0,
        left_ms,
        0,
        "ab",
        1,
    )


def test_certificate() -> None:
    """What is wrong with a certificate: the first of each kind, with its facts."""
    errors = [
        UntrustedCertificateError(10, 1),
        UntrustedCertificateError(10),
        VerificationError([DNSMismatch(mismatched_id=DNS_ID("a.example"))]),
    ]
    for left_ms, reason, ago_ms in (
        (9, Reason.IN_CHAIN, None),
        (-9, Reason.OWN_CERTIFICATE, 9),
    ):
        expired, wrong = problems_of(errors, certificate(left_ms))
        assert (expired.reason, expired.facts.ago_ms) == (reason, ago_ms)
        assert expired.facts.also == (FailureKind.TLS_WRONG_NAME,)
        assert wrong.facts.names == ("one.example", "two.example")
        assert wrong.facts.host == "a.example"
    assert problems_of([], None) == ()


# Addresses.


def test_plan() -> None:
    """Of each host the first address, then the second; those blocked are left out."""

    def host(name: str, *addresses: str, **kwargs: Any) -> Target:
        shown = tuple(TargetAddress(address, False) for address in addresses)
        return Target(name, 1, shown, len(shown), **kwargs)

    error = Failure(FailureKind.IP_BLOCKED)
    targets = (
        host("a", "1", "2", "3"),
        host("b", "4", error=error),
        Target("c", 2, via_proxy=True),
    )
    planned = plan(targets, ServerName("n.example", None, False))
    assert [(c.address, c.host) for c in planned] == [
        *(("1", "a"), ("4", "b"), (None, "c"), ("2", "a"), ("3", "a")),
    ]
    assert [c.outcome is SKIPPED for c in planned] == [False, True, False, False, False]
    assert {c.sni for c in planned} == {"n.example"}


def test_no_route() -> None:
    """An address of a family that this host does not have is excused."""
    for reason, outcome in (
        (None, FAILED),
        (Reason.NO_IPV4, SKIPPED),
        (Reason.NO_IPV6, SKIPPED),
    ):
        error = Failure(FailureKind.UNREACHABLE, reason)
        tried = Connection("2001:db8::1", "a", 1, "a", "a", FAILED, error=error)
        assert without_route(tried).outcome is outcome


# What is stored.


@pytest.mark.parametrize(
    ("row", "inbound", "reaches_us", "left_ms"),
    [
        (None, None, False, 0),
        (None, NOW - 1, True, 0),
        (Destination(NAME, None, None, None, 1), NOW - 1, True, 0),
        (Destination(NAME, NOW, HOUR, NOW - 9, 1), NOW - 1, True, HOUR),
        (Destination(NAME, NOW, HOUR, NOW - 9, 1), NOW - 10, False, HOUR),
        (Destination(NAME, 1, 1, 1, 1), None, False, 0),
    ],
)
def test_stored(
    row: Destination | None, inbound: int | None, reaches_us: bool, left_ms: int
) -> None:
    """What Synapse holds, and whether they reach us."""
    stage = check_stored(row, Backlog(), inbound, None, now_ms=NOW)
    assert isinstance(stage.findings, StoredFindings)
    assert stage.findings.reaches_us is reaches_us
    assert stage.findings.backoff_left_ms == left_ms
    is_failing = row is not None and row.is_failing
    assert (stage.outcome is WARNING) is is_failing


def recorded(failed_ts: int | None, success_ts: int | None) -> Recorded:
    failures = [
        RecordedFailure("too_large", "", 1, ts, 1, "main")
        for ts in (failed_ts, 1)
        if ts is not None
    ]
    return Recorded(failures if failed_ts else [], success_ts)


ONLINE = Destination(NAME, None, None, None, 1)
BACKED_OFF = Destination(NAME, NOW - 9, HOUR, NOW - HOUR, 1)


@pytest.mark.parametrize(
    ("row", "known", "expected"),
    [
        (ONLINE, recorded(NOW - 3, None), (LastRequest.FAILED, 3, None)),
        (ONLINE, recorded(NOW - 3, NOW - 5), (LastRequest.FAILED, 3, 5)),
        (ONLINE, recorded(NOW - 5, NOW - 3), (LastRequest.SUCCEEDED, 5, 3)),
        (ONLINE, recorded(None, NOW - 3), (LastRequest.SUCCEEDED, None, 3)),
        (ONLINE, recorded(None, None), (LastRequest.NONE, None, None)),
        (ONLINE, None, (LastRequest.NOT_KNOWN, None, None)),
        # By Synapse's row, also where nothing is recorded, or not yet.
        (BACKED_OFF, None, (LastRequest.FAILED, 9, None)),
        (BACKED_OFF, recorded(NOW - 99, NOW - 50), (LastRequest.FAILED, 9, 50)),
        (None, recorded(NOW - 3, None), (LastRequest.FAILED, 3, None)),
    ],
)
def test_last_request(
    row: Destination | None,
    known: Recorded | None,
    expected: tuple[LastRequest, int | None, int | None],
) -> None:
    """What came of the last real request: a failure before a success is over."""
    found = check_stored(row, Backlog(), None, known, now_ms=NOW).findings
    assert isinstance(found, StoredFindings)
    assert expected == (
        found.last_request,
        found.last_failed_ago_ms,
        found.last_succeeded_ago_ms,
    )


@pytest.mark.parametrize(
    ("ago_ms", "is_why"),
    [(HOUR - 9, True), (HOUR + 1, True), (HOUR + 2000, False)],
    ids=["after", "a moment before", "of an earlier outage"],
)
def test_last_kind(ago_ms: int, is_why: bool) -> None:
    """Synapse takes its time of a failure a moment after it is recorded why."""
    known = recorded(NOW - ago_ms, None)
    found = check_stored(BACKED_OFF, Backlog(), None, known, now_ms=NOW).findings
    assert isinstance(found, StoredFindings)
    assert (found.last_kind is not None) is is_why


def test_left_out() -> None:
    """Addresses that are excused do not count beside others; alone they do."""
    error = Failure(FailureKind.CONNECTION_REFUSED)
    good = Connection("192.0.2.1", "a", 1, "a", "a", OK)
    bad = good._replace(outcome=FAILED, error=error)
    left_out = good._replace(outcome=SKIPPED, error=error)

    def found(*connections: Connection) -> Stage:
        return conclude_connections(ConnectionsFindings(connections))

    assert found(good, left_out).outcome is OK
    for none in (found(bad, left_out), found(left_out)):
        assert (none.outcome, none.kind) == (FAILED, FailureKind.CONNECTION_REFUSED)
    assert found().kind is FailureKind.UNREACHABLE


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (Stage(StageName.NAME, OK), "The server name is valid"),
        (
            Stage.skip(StageName.VERSION, SkipReason.ANOTHER_PROCESS, "a, b"),
            f"{SkipReason.ANOTHER_PROCESS.value}a, b",
        ),
        (
            Stage.of_all(
                StageName.CONNECTIONS,
                (None, Failure(FailureKind.TLS_EXPIRED, Reason.OWN_CERTIFICATE)),
                ConnectionsFindings(()),
            ),
            "1 of 2 fail: Expired TLS certificate: the server's own certificate has "
            "expired",
        ),
        (
            Stage(StageName.STORED, WARNING, findings=StoredFindings(True, "", 1, 2)),
            "Synapse backs off from the server, and retries when something is due",
        ),
    ],
)
def test_message(stage: Stage, message: str) -> None:
    """What came of a stage, for people: what is wrong, or what there is to say."""
    assert stage.message == message
