# SPDX-License-Identifier: Apache-2.0
"""What the stages of a diagnosis mean where they disagree.

That every kind is found is proven by test_e2e_diagnosis. Each question has a table, of
the same few stages: they stand together.
"""

from typing import Any

import attr
import pytest

from synapse_federation_admin.destinations.backlog import Backlog
from synapse_federation_admin.destinations.senders import Sender
from synapse_federation_admin.diagnosis.connections import (
    conclude as conclude_connections,
)
from synapse_federation_admin.diagnosis.findings import (
    AuthenticatedFindings,
    ClockFindings,
    Connection,
    ConnectionsFindings,
    KeysFindings,
    StageOutcome,
    StoredFindings,
    VersionFindings,
)
from synapse_federation_admin.diagnosis.resolution import (
    AddressesFindings,
    CachedWellKnown,
    ServiceRecord,
    Target,
    WellKnownFindings,
    WellKnownRequest,
)
from synapse_federation_admin.diagnosis.stages import (
    SkipReason,
    Stage,
    StageName,
    Stages,
)
from synapse_federation_admin.diagnosis.stored import check_sender, check_stored
from synapse_federation_admin.diagnosis.verdict import conclude
from synapse_federation_admin.failures.kinds import (
    NOBODY_THERE,
    Failure,
    FailureKind,
    Reason,
)
from synapse_federation_admin.failures.situation import LastRequest, Remark, Verdict
from synapse_federation_admin.storage.instances import InstanceState
from synapse_federation_admin.storage.records import Recorded, RecordedFailure

pytestmark = pytest.mark.one_synapse

OK, WARNING = StageOutcome.OK, StageOutcome.WARNING
FAILED, SKIPPED = StageOutcome.FAILED, StageOutcome.SKIPPED

Name, Kind = StageName, FailureKind
SEND = Name.AUTHENTICATED


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


def keys(
    outcome: StageOutcome, kind: FailureKind | None = None, **findings: Any
) -> Stage:
    return stage(Name.KEYS, outcome, kind, KeysFindings(**findings))


def signed(
    kind: FailureKind, status: int | None = None, *, is_real: bool = False
) -> Stage:
    """Return the stage of a transaction that was not taken."""
    seen = AuthenticatedFindings("/path", status, is_real=is_real)
    return stage(SEND, FAILED, kind, seen)


BACKOFF = StoredFindings(
    True,
    "backing_off",
    failing_since_ts=1,
    next_retry_ts=2,
    backoff_left_ms=31 * 3_600_000,
)


def stored(**changes: Any) -> Stage:
    return stage(Name.STORED, WARNING, findings=BACKOFF._replace(**changes))


REFUSED, EXPIRED = Kind.CONNECTION_REFUSED, Kind.TLS_EXPIRED
TIMEOUT = Kind.CONNECTION_TIMEOUT
HTTP_ERROR, LATE = Kind.HTTP_ERROR, Kind.RESPONSE_TIMEOUT
DNS = Kind.DNS_FAILED
SLOW_CLOCK = stage(Name.CLOCK, WARNING, Kind.OTHER, ClockFindings(0, 9, -7_200_000))
ONE_EXPIRED = stage(Name.CONNECTIONS, WARNING, EXPIRED)
NO_VERSION = stage(Name.VERSION, FAILED, HTTP_ERROR)
NO_FILE = unreachable(EXPIRED)
REJECTED, FAILS = signed(Kind.REJECTED, 401), signed(HTTP_ERROR, 500)
BAD_FILE = stage(Name.WELL_KNOWN, FAILED, Kind.WELL_KNOWN_INVALID)
# All but the name, and what is stored.
ASKED = list(StageName)[1:8]
ELSEWHERE = [Stage.skip(name, SkipReason.ANOTHER_PROCESS) for name in ASKED[:4]]
EXPIRED_KEYS = keys(FAILED, Kind.KEYS_EXPIRED, status=200)


def bugs(*names: StageName) -> list[Stage]:
    return [Stage.failed(name, Failure(Kind.INTERNAL)) for name in names]


def not_connected(kind: FailureKind, *changed: Stage) -> Stages:
    return failed_at(Name.CONNECTIONS, kind, *changed)


# The effect, the kind, the reason and remarks; and stages that have to mean it.
CASES = [
    # A file that cannot be fetched is the cause only if there is a web server, and
    # nobody where Synapse looks then.
    ("stops connection_refused", not_connected(REFUSED, unreachable(TIMEOUT))),
    ("stops tls_expired", not_connected(EXPIRED, unreachable(None))),
    # What fails beside a request that got through does not stop it.
    ("works well_known_invalid found_without_file", stages(BAD_FILE)),
    ("at_times tls_failed", stages(stage(Name.CONNECTIONS, FAILED, Kind.TLS_FAILED))),
    # A failure comes before a warning.
    ("no_version http_error", stages(unreachable(None), NO_VERSION)),
    # One bad address among good ones, and something else that Synapse has met.
    ("stops rejected only_send", stages(ONE_EXPIRED, REJECTED)),
    # Where other processes go out, it is not known whether connections are taken.
    (
        "stops response_timeout another_process",
        stages(*ELSEWHERE, keys(FAILED, LATE), signed(LATE)),
    ),
    # Synapse goes by an older answer; not if the server does not work by the new one.
    ("stops other cached_delegation", stages(cached(), signed(REFUSED))),
    ("stops connection_refused", stages(cached(is_used=False), signed(REFUSED))),
    ("stops connection_refused", not_connected(REFUSED, cached())),
    ("works other cached_delegation", stages(cached())),
    # A file that does not come keeps Synapse from asking anything else; not here.
    ("stops http_error signed_not_routed", stages(unreachable(LATE), FAILS)),
    ("stops response_timeout signed_unanswered", stages(NO_FILE, signed(LATE))),
    # What is told of an empty one is not told of a real one, which may be large.
    ("stops response_timeout", stages(signed(LATE, is_real=True))),
    ("stops too_large", stages(signed(Kind.TOO_LARGE, 413, is_real=True))),
    ("stops http_error signed_not_routed", stages(signed(HTTP_ERROR, is_real=True))),
    # Who is not reached by one request has not answered it: that is no fault of theirs.
    ("stops dns_failed", stages(keys(FAILED, DNS, error=Failure(DNS)), file())),
    ("stops dns_failed", stages(signed(DNS))),
    # They reach us, and were reached.
    ("stops keys_expired", stages(EXPIRED_KEYS, stored(reaches_us=True))),
    # A clock that is off explains some kinds only.
    ("stops gone signed_not_routed", failed_at(SEND, Kind.GONE, SLOW_CLOCK)),
    # A bug on this side is no stage that failed: then nothing is known, but what is
    # proven stands.
    ("not_known internal", stages(*(stage(name, SKIPPED) for name in ASKED))),
    ("not_known internal", stages(*bugs(*ASKED))),
    ("none", stages(*bugs(*ASKED[:5]))),
    (
        "stops connection_refused",
        stages(stage(Name.CONNECTIONS, FAILED, REFUSED), *bugs(SEND)),
    ),
    ("not_known internal", stages(NO_VERSION, *bugs(SEND))),
]


@pytest.mark.parametrize(("expected", "given"), CASES)
def test_situation(expected: str, given: Stages) -> None:
    """Which stage counts, what comes of it, and what exactly is wrong."""
    found = conclude(given)
    words = [found.effect.name.lower()]
    if found.failure:
        reason = found.failure.reason
        words += [found.failure.kind.value, *([reason.value] if reason else [])]
    words += [remark.name.lower() for remark in found.remarks]
    assert " ".join(words) == expected


ONE, TWO, SIX = "192.0.2.1", "192.0.2.2", "2001:db8::1"


def connection(
    address: str, error: FailureKind | None = None, host: str = "a", connect_ms: int = 1
) -> Connection:
    return Connection(
        address,
        host,
        8448,
        "a",
        "a",
        FAILED if error else OK,
        connect_ms=None if error in NOBODY_THERE else connect_ms,
        error=Failure(error) if error else None,
    )


def priorities(*hosts: str) -> Stage:
    """Return the stage of addresses of SRV records, the first used first."""
    services = tuple(
        ServiceRecord("_matrix-fed._tcp.a", host, 8448, number, 0, 60)
        for number, host in enumerate(hosts)
    )
    targets = tuple(Target(host, 8448) for host in hosts)
    found = AddressesFindings("a", None, (), services, 2, targets, 2)
    return stage(Name.ADDRESSES, findings=found)


FIRST_B, FIRST_C = priorities("b", "c"), priorities("c", "b")


@pytest.mark.parametrize(
    ("connections", "changed", "expected"),
    [
        # The resolver gives now the one first, now the other.
        ([(ONE, EXPIRED), (TWO,)], (), "some_requests"),
        # Synapse goes to the first of these, and stays with it.
        ([(SIX, EXPIRED), (ONE,)], (), "stops another_works"),
        ([(ONE, EXPIRED), (SIX,)], (), "stops another_works"),
        # But not if it is slow.
        ([(SIX, EXPIRED, "a", 400), (ONE,)], (), "some_requests"),
        ([(ONE, EXPIRED, "b"), (TWO, None, "c")], (FIRST_B,), "stops another_works"),
        ([(ONE, EXPIRED, "b"), (TWO, None, "c")], (FIRST_C,), "some_requests"),
        # A host that is not connected to is passed over: of several, at once.
        ([(ONE, TIMEOUT), (TWO,)], (), "next_address"),
        ([(ONE, TIMEOUT), (TWO,)], (file(TIMEOUT),), "waits_for_address"),
        ([(ONE, TIMEOUT, "b"), (TWO, None, "c")], (FIRST_B,), "waits_for_address"),
    ],
)
def test_choice(
    connections: list[Any], changed: tuple[Stage, ...], expected: str
) -> None:
    """Whether real requests meet a bad address: by luck, always, or after a wait."""
    made = [connection(*each) for each in connections]
    bad = conclude_connections(ConnectionsFindings(tuple(made)))
    assert bad.kind is not None
    found = conclude(stages(bad, signed(bad.kind), *changed))
    words = [found.effect.name.lower(), *(r.name.lower() for r in found.remarks)]
    assert " ".join(words) == expected


def test_one_of_several() -> None:
    """Where one of several addresses takes no transaction, another one may."""
    both = ConnectionsFindings((connection(ONE), connection(TWO)))
    refused = signed(HTTP_ERROR, 404)
    found = conclude(stages(stage(Name.CONNECTIONS, findings=both), refused))
    assert found.remarks == (Remark.ONE_OF_SEVERAL,)
    assert conclude(stages(refused)).remarks == ()
    # At the other one, no homeserver answers.
    down = VersionFindings(1, error=Failure(HTTP_ERROR))
    bad = connection(ONE, EXPIRED)
    made = (bad, connection(SIX)._replace(version=down))
    found = conclude(
        stages(conclude_connections(ConnectionsFindings(made)), signed(EXPIRED))
    )
    assert (found.kind, found.remarks) == (EXPIRED, ())


@pytest.mark.parametrize("name", ASKED)
def test_warning(name: StageName) -> None:
    """A warning of any stage but the last makes it degraded."""
    found = conclude(stages(stage(name, WARNING, Kind.OTHER)))
    assert (found.verdict, found.kind) == (Verdict.DEGRADED, Kind.OTHER)


def test_facts() -> None:
    """What other stages know: the cause behind a cached answer, and the clocks."""
    found = conclude(stages(cached(), signed(REFUSED))).failure
    assert found is not None
    assert found.facts.cause == Failure(REFUSED)
    found = conclude(stages(REJECTED, SLOW_CLOCK)).failure
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


def real(kind: str, failed_ago_ms: int = 3_600_000, **changes: Any) -> Stage:
    """Return the stage of a server whose last real request failed."""
    failure = RecordedFailure(kind, "", 1, 1, 1, "main") if kind else None
    found: dict[str, Any] = {
        "last_request": LastRequest.FAILED,
        "last_failure": failure,
        "last_failed_ago_ms": failed_ago_ms,
        **changes,
    }
    return stored(**found)


SUCCEEDED = {"last_request": LastRequest.SUCCEEDED, "last_succeeded_ago_ms": 9000}
UNDER_WAY = stage(
    Name.AUTHENTICATED, OK, None, AuthenticatedFindings("/path", 200, is_real=True)
)
BUSY = stage(SEND, OK, None, AuthenticatedFindings("/path", 429))
WEAK_KEYS = stage(Name.KEYS, WARNING, Kind.KEYS_INVALID)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        # Of what is large, or comes at another time, small requests prove nothing.
        (stages(real("too_large")), "refuses too_large"),
        (stages(real("too_large"), WEAK_KEYS), "refuses too_large"),
        (stages(real("http_error")), "unproven http_error"),
        (stages(real("http_error"), WEAK_KEYS), "works keys_invalid"),
        # That it cannot be connected to is disproved, if that was not just now.
        (stages(real("connection_refused")), "none"),
        (stages(real("connection_refused", 3000)), "unproven connection_refused"),
        # Why is not known: it failed before anything was recorded, or it is not written
        # yet.
        (stages(real("")), "none"),
        (stages(real("", 3000)), "unproven"),
        # It is of an outage that is over.
        (stages(real("too_large", failing_since_ts=9999)), "none"),
        (stages(real("of a later version")), "none"),
        # One has succeeded since, though Synapse backs off; none has that was as large.
        (stages(real("too_large", **SUCCEEDED)), "none"),
        (
            stages(real("too_large", **SUCCEEDED, refused_bytes=9)),
            "refuses_large too_large",
        ),
        # What the stages met themselves comes first.
        (not_connected(REFUSED, real("too_large")), "stops connection_refused"),
        # That it is busy with one of ours is not that it accepts one.
        (stages(real("rate_limited"), BUSY), "stays_busy rate_limited"),
        # A real one that was under way is the last.
        (stages(real("too_large"), UNDER_WAY), "none"),
    ],
)
def test_real_traffic(given: Stages, expected: str) -> None:
    """What real traffic met has the last word, unless the stages disprove it."""
    found = conclude(given)
    words = [found.effect.name.lower(), *([found.kind.value] if found.kind else [])]
    assert " ".join(words) == expected
    assert (
        "The last real request succeeded 1 s" in found.explanation
    ) is given.sent.is_real
    for text in (found.explanation, found.advice):
        assert ("works." in text or "Nothing to do" in text) is given.sent.is_real
    if not expected.startswith("stops"):
        assert "The last real request" in found.explanation


def test_reaches_us() -> None:
    """That they reach us is told where they have since they fail, not of before.

    Who has just gone down has reached us within the last day, too.
    """
    for since_ts, is_told in (1, True), (None, False):
        known = stored(reaches_us=True, failing_since_ts=since_ts)
        found = conclude(not_connected(REFUSED, known))
        assert ("They reach this" in found.explanation) is is_told


def test_met() -> None:
    """What a real request met is told as it was recorded: its kind alone says more.

    "A web server answers, but no homeserver behind it" is not known of a homeserver
    that takes one transaction, and answers another with an error.
    """
    said = "HTTP error: the homeserver itself answers with an error (HTTP 400 M_X)"
    failure = RecordedFailure("http_error", said, 1, 1, 1, "main")
    told = conclude(stages(real("http_error", last_failure=failure))).explanation
    assert f"real request failed. {said}. The last real" in told
    assert "no homeserver" not in told
    # Of another kind it tells nothing.
    other = {**SUCCEEDED, "last_failure": failure, "refused_bytes": 9}
    assert said not in conclude(stages(real("", **other))).explanation


def test_one_advice() -> None:
    """Who is to reconnect, to see what is accepted, is not told to reset as well."""
    failing = {"failing_since_ts": 1, "backoff_left_ms": 60_000}
    found = conclude(stages(real("rejected", **failing)))
    assert found.backoff_left_ms == 60_000
    assert found.advice.startswith("Reconnect")
    assert "reset" not in found.advice


def test_unknown_traffic() -> None:
    """Where nothing is recorded, it is said that it is not known."""
    for last, says in (
        (LastRequest.NOT_KNOWN, "is not known"),
        (LastRequest.NONE, "No real request"),
    ):
        found = conclude(stages(stored(last_request=last)))
        assert says in found.explanation
    skipped = Stage.skip(Name.STORED, SkipReason.DATABASE_SLOW)
    assert "is not known" in conclude(stages(skipped)).explanation


DELEGATED = Reason.DELEGATED_TO_US
IS_US = keys(FAILED, Kind.IS_US, is_us=True)
SERVICE = AddressesFindings("a", "4", (), services_total=1)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        # By our name, whatever answers there.
        (not_connected(REFUSED, file(delegated_to="Us.example")), DELEGATED),
        # By our key, whatever the name.
        (stages(file(delegated_to="matrix.us.example:443"), IS_US), DELEGATED),
        (stages(IS_US), Reason.ADDRESS_IS_OURS),
        (
            stages(stage(Name.ADDRESSES, findings=SERVICE), IS_US),
            Reason.SERVICE_IS_US,
        ),
        (not_connected(REFUSED, file(delegated_to="them.example")), None),
    ],
)
def test_is_us(given: Stages, reason: Reason | None) -> None:
    """A name that leads to this homeserver, by how it leads there."""
    found = conclude(given, "us.example")
    assert found.verdict is Verdict.FAILING
    assert (found.kind is Kind.IS_US) is (reason is not None)
    if reason is not None:
        assert found.reason is reason


@pytest.mark.parametrize(
    ("given", "is_in_vain"),
    [
        (not_connected(REFUSED), True),
        (failed_at(Name.ADDRESSES, DNS), True),
        (stages(REJECTED), True),
        (stages(FAILS), True),
        # A contact takes no keys, and is smaller than what is real.
        (stages(EXPIRED_KEYS), False),
        (stages(signed(Kind.TOO_LARGE, 413, is_real=True)), False),
        (stages(real("too_large")), False),
        # And does not go by what Synapse has cached of a file.
        (stages(cached(), signed(REFUSED)), False),
    ],
)
def test_reset_in_vain(given: Stages, is_in_vain: bool) -> None:
    """That a reset does not help is said only where a reconnect does not connect."""
    found = conclude(given)
    assert found.verdict is Verdict.FAILING
    assert ("does not help" in found.advice) is is_in_vain


GONE = Sender("federation_sender1", InstanceState.GONE, 1, is_down=True)
NEVER_SEEN = GONE._replace(state=InstanceState.NEVER_SEEN, seen_ts=None)
NOBODY = Sender(None, InstanceState.NOBODY, is_down=True)
RUNNING = Sender("federation_sender1", InstanceState.RUNNING, 9, 5, 0, 0, 0)
AHEAD = RUNNING._replace(ahead_events=7)
HUNG = RUNNING._replace(state=InstanceState.LATE, is_late=True)
OVERLOADED = RUNNING._replace(is_late=True, reactor_late_ms=9000)
HOUR_MS = 3_600_000


def behind(events: int, ms: int) -> Sender:
    return RUNNING._replace(behind_events=events, behind_ms=ms)


@pytest.mark.parametrize(
    ("sender", "expected", "advice"),
    [
        (GONE, "failing sender_down sender_gone", "Start federation_sender1"),
        (
            NEVER_SEEN,
            "failing sender_down sender_never_seen",
            "federation_sender_instances",
        ),
        (NOBODY, "failing sender_down nobody_sends", "send_federation: true"),
        (AHEAD, "failing sender_behind position_lost", "sent for sure"),
        (behind(9, HOUR_MS), "failing sender_behind -", "restart it"),
        (behind(9, HOUR_MS // 2), "degraded sender_behind -", "restart it"),
        (behind(1, 20_000), "degraded sender_behind -", "the next event"),
        (behind(9, 1000), "ok - -", ""),
        (HUNG, "degraded sender_behind sender_not_seen", "it hangs or is stopped"),
        (OVERLOADED, "ok - -", ""),
    ],
)
def test_sender(sender: Sender, expected: str, advice: str) -> None:
    """Whatever the network says: what nobody sends does not leave."""
    checked = check_sender(sender, None, now_ms=9)
    found = conclude(stages(checked))
    kind, reason = found.kind, found.reason
    words = (kind.value if kind else "-", reason.value if reason else "-")
    assert " ".join((found.verdict.value, *words)) == expected
    assert advice in found.advice
    is_told = Remark.SENDER_OVERLOADED in found.remarks
    assert is_told is (checked.reason is Reason.SENDER_OVERLOADED)
    if found.verdict is Verdict.FAILING:
        # What else is wrong is told, too; a name to which nothing is sent comes first.
        both = conclude(not_connected(REFUSED, checked))
        assert (both.kind, both.also) == (kind, Failure(REFUSED))
        never = conclude(failed_at(Name.NAME, Kind.INVALID_NAME, checked))
        assert never.kind is Kind.INVALID_NAME


def test_sender_never_begun() -> None:
    """Who has come to no event is not told as keeping up, nor as sending nothing."""
    for position, said in ((5, "and keeps up"), (None, "; it has queued no event yet")):
        sender = RUNNING._replace(position=position)
        assert check_sender(sender, None, now_ms=9).message.endswith(said)


def test_no_row() -> None:
    """That there is no row says nothing of what was sent: messages leave none."""
    taken = Recorded((), success_ts=8)
    stage = check_stored(None, Backlog(), None, taken, now_ms=9)
    assert stage.message.startswith("Synapse has no row for the server")


@pytest.mark.parametrize("instance", ["federation_sender1", "main"])
def test_position(instance: str) -> None:
    """Where it is known what was sent last, it is said how to go on from there."""
    sender = AHEAD._replace(instance=instance)
    found = conclude(stages(check_sender(sender, 4, now_ms=9)))
    assert found.reason is Reason.POSITION_AHEAD
    name = "master" if instance == "main" else instance
    where = f"WHERE type = 'events' AND instance_name = '{name}'"
    assert f"SET stream_id = 4 {where}" in found.advice
