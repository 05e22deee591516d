# SPDX-License-Identifier: Apache-2.0
"""Whether servers fail for a cause of ours, of theirs, or as they always do."""

import pytest

from synapse_federation_admin.failures.kinds import FailureKind
from synapse_federation_admin.history.correlation import Correlation, correlate
from synapse_federation_admin.storage.recent_attempts import (
    CauseType,
    RecentAttempts,
    SharedCause,
)

pytestmark = pytest.mark.one_synapse

HOUR_MS = 3_600_000
LATELY_MS = 900_000


def tried(
    window_ms: int,
    began: dict[str, int],
    *,
    succeeded: int = 0,
    before: dict[str, int] | None = None,
    worked: bool = True,
    recent: int = 0,
    ever_succeeded: bool = True,
    address: int = 0,
    looked: int | None = None,
    issuer: int = 0,
) -> RecentAttempts:
    """Return what was tried.

    Args:
        window_ms: In which time.
        began: How many began to fail in it, by kind.
        succeeded: How many answered.
        before: How many were failing before, by kind.
        worked: Whether those that began to fail had worked.
        recent: How many of those before began to fail within a day.
        ever_succeeded: Whether any server ever answered.
        address: How many of those that began to fail lead to one address.
        looked: Of how many that is known; None: of all.
        issuer: How many of them have certificates of one issuer.
    """
    before = before or {}
    all_began = sum(began.values())
    causes = [
        SharedCause(
            CauseType.KIND,
            kind,
            began.get(kind, 0) + before.get(kind, 0),
            began.get(kind, 0),
            began.get(kind, 0) if worked else 0,
        )
        for kind in {**began, **before}
    ]
    for type_, value, count in (
        (CauseType.ADDRESS, "192.0.2.1", address),
        (CauseType.ISSUER, "CN=R3", issuer),
    ):
        if count:
            causes.append(SharedCause(type_, value, count, count, count))
    return RecentAttempts(
        window_ms,
        failing=all_began + sum(before.values()),
        began=all_began,
        worked=all_began if worked else 0,
        recent=recent + (all_began if worked else 0),
        succeeded=succeeded,
        ever_succeeded=ever_succeeded,
        looked=all_began if looked is None else looked,
        causes=tuple(causes),
    )


def judged(began: dict[str, int], **values: object) -> Correlation:
    """Return the correlation where the last quarter of an hour is as the hour."""
    return correlate(
        tried(HOUR_MS, began, **values),  # type: ignore[arg-type]
        tried(LATELY_MS, began, **values),  # type: ignore[arg-type]
    )


def test_resolver() -> None:
    """The explanation has the share, the time, the kind, and the likely cause."""
    found = judged({"dns_failed": 46}, succeeded=4)
    assert found.verdict.value == "us"
    assert found.explanation == (
        "92 % of servers tried in the last 15 minutes fail with dns_failed: the "
        "resolver of this host is the likely cause"
    )


# Kinds with which many began to fail, and what of ours is named.
OURS = [
    ({"dns_failed": 9, "dns_not_found": 3}, "resolver"),
    ({"connection_timeout": 10}, "firewall"),
    ({"unreachable": 5, "connection_refused": 5}, "firewall"),
    # Neither alone is most of them.
    ({"dns_failed": 5, "connection_timeout": 5}, "the network of this host is"),
    ({"ip_blocked": 10}, "ip_range_blacklist"),
    ({"tls_expired": 10}, "clock"),
    ({"tls_not_yet_valid": 10}, "clock"),
    ({"tls_untrusted": 10}, "federation_custom_ca_list"),
    ({"tls_wrong_name": 5, "tls_failed": 5}, "intercepts TLS"),
    ({"rejected": 10}, "signing key"),
    ({"rate_limited": 10}, "sends too much"),
    ({"response_timeout": 10}, "overloaded"),
    ({"http_error": 10}, "proxy"),
]


@pytest.mark.parametrize(("began", "says"), OURS)
def test_ours(began: dict[str, int], says: str) -> None:
    """If most that worked began to fail alike, it is told what of ours it may be."""
    found = judged(began, succeeded=3)
    assert found.verdict.value == "us"
    assert says in found.explanation
    for kind in began:
        assert kind in found.explanation


def test_every_kind_of_real_traffic() -> None:
    """Every kind that a real request can fail with is one that could be ours."""
    never_met = ("invalid_name", "not_allowed", "well_known", "keys_")
    never_met += ("other", "internal")
    for kind in FailureKind:
        if not kind.value.startswith(never_met):
            assert judged({kind.value: 10}).verdict.value == "us", kind


# What is as it always is: those that began to fail, and what else there is.
NORMAL = [
    ({}, {}),
    ({}, {"succeeded": 100}),
    # Too few to tell.
    ({"dns_failed": 4}, {}),
    # Most that worked still do.
    ({"dns_failed": 10}, {"succeeded": 11}),
    # All sorts of things.
    ({"tls_expired": 4, "dns_failed": 3, "rejected": 4}, {"succeeded": 1}),
    # Long dead, and we are well.
    ({}, {"before": {"dns_not_found": 90, "connection_timeout": 5}, "succeeded": 1}),
    # Somebody joins an old room, in which most servers are dead.
    ({"connection_timeout": 2400}, {"succeeded": 1500, "worked": False}),
    # Somebody makes names up.
    ({"dns_not_found": 100}, {"worked": False}),
    ({"connection_refused": 180}, {"worked": False, "succeeded": 8}),
    # Only long dead ones are tried.
    ({}, {"before": {"connection_timeout": 8}}),
]


@pytest.mark.parametrize(("began", "values"), NORMAL)
def test_normal(began: dict[str, int], values: dict[str, object]) -> None:
    """Nothing is concluded from few, from many causes, from what never worked."""
    found = judged(began, **values)
    assert found.verdict.value == "normal", found.explanation
    assert "likely cause" not in found.explanation


@pytest.mark.parametrize("values", [{"recent": 5}, {"ever_succeeded": False}])
def test_nothing_works(values: dict[str, object]) -> None:
    """If not one server is reached, though some worked, or since ever, it is us."""
    found = judged({}, before={"connection_timeout": 9}, **values)
    assert found.verdict.value == "us"
    assert found.explanation.startswith("100 % of servers tried in the last hour")


def test_quiet() -> None:
    """A quarter of an hour in which nothing works is no hour."""
    found = correlate(
        tried(HOUR_MS, {}, before={"dns_failed": 8}, recent=8, succeeded=40),
        tried(LATELY_MS, {}, before={"dns_failed": 8}, recent=8),
    )
    assert found.verdict.value == "normal"


def test_address() -> None:
    """Those that began to fail and lead to one address have that as their cause."""
    found = judged({"connection_timeout": 9}, succeeded=1, address=8)
    assert found.verdict.value == "shared"
    assert found.explanation == (
        "8 of 9 servers that began to fail in the last 15 minutes lead to the "
        "address 192.0.2.1: what runs there, or the way there, is the likely cause"
    )
    assert (
        judged({"connection_timeout": 9}, succeeded=1, address=6).verdict.value == "us"
    )


def test_sample() -> None:
    """Where not all were looked up, twenty are enough to tell, and ten are not."""
    began = {"connection_refused": 1000}
    found = judged(began, succeeded=9, address=20, looked=20)
    assert found.verdict.value == "shared"
    assert "20 of 20 servers" in found.explanation
    assert judged(began, succeeded=9, address=10, looked=10).verdict.value == "us"


def test_issuer() -> None:
    """Certificates of one issuer are a cause, unless nobody is trusted any more."""
    found = judged({"tls_expired": 8}, succeeded=50, issuer=8)
    assert found.verdict.value == "shared"
    assert "the issuer CN=R3: that is the likely cause" in found.explanation
    assert judged({"tls_expired": 8}, issuer=8).verdict.value == "us"


def test_hour() -> None:
    """What the last quarter of an hour does not show, the hour may."""
    found = correlate(
        tried(HOUR_MS, {"dns_failed": 20}), tried(LATELY_MS, {"dns_failed": 2})
    )
    assert found.verdict.value == "us"
    assert "tried in the last hour fail with" in found.explanation


def test_ordinary() -> None:
    """Where all is as ever, the explanation has the numbers."""
    assert judged({}).explanation == "No server was tried in the last hour"
    assert judged({}, succeeded=5).explanation == (
        "None of the 5 servers tried in the last hour fails"
    )
    assert judged({}, succeeded=3, before={"gone": 1}).explanation.startswith(
        "25 % of servers tried in the last hour fail (1 of 4)"
    )
