# SPDX-License-Identifier: Apache-2.0
"""Whether servers fail for a cause of ours, of theirs, or as they always do."""

import pytest
from hypothesis import example, given, strategies

from synapse_federation_admin.failures.kinds import OWN_KINDS, FailureKind
from synapse_federation_admin.history.outlook import Correlation, correlate
from synapse_federation_admin.history.owners import owner_of
from synapse_federation_admin.storage.recent_attempts import (
    CauseType,
    OwnerAttempts,
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
    known: bool = True,
    recent: bool = False,
    works: int | None = None,
    address: int = 0,
    looked: int | None = None,
    issuer: int = 0,
) -> RecentAttempts:
    """Return what was tried, each server of an owner of its own.

    Args:
        window_ms: In which time.
        began: How many began to fail in it, by kind.
        succeeded: How many answered.
        before: How many were failing before, by kind.
        known: Whether those that began to fail are known for long.
        recent: Whether those before began to fail within a day, and are, too.
        works: How many of those that answered are; None: all.
        address: How many of those that began to fail lead to one address.
        looked: Of how many that is known; None: of all.
        issuer: How many of them have certificates of one issuer.
    """
    before = before or {}
    all_began = sum(began.values())
    looked = all_began if looked is None else looked
    causes = [
        SharedCause(
            CauseType.KIND,
            kind,
            began.get(kind, 0) + before.get(kind, 0),
            began.get(kind, 0),
            began.get(kind, 0) if known else 0,
        )
        for kind in {**began, **before}
    ]
    for type_, value, count in (
        (CauseType.ADDRESS, "192.0.2.1", address),
        (CauseType.ISSUER, "CN=R3", issuer),
    ):
        if count:
            causes.append(SharedCause(type_, value, count, count, count))
    owners: list[OwnerAttempts] = []
    for kind, count in began.items() if known else ():
        for _ in range(count):
            number = len(owners)
            leads_to = (
                "192.0.2.1"
                if number < address
                else f"10.{number // 200}.{number % 200}.1"
            )
            owners.append(
                OwnerAttempts(
                    {kind: 1},
                    {kind: 1},
                    addresses=frozenset([leads_to] if number < looked else ()),
                )
            )
    for kind, count in before.items() if recent else ():
        owners += [OwnerAttempts(recent={kind: 1})] * count
    return RecentAttempts(
        window_ms,
        failing=all_began + sum(before.values()),
        began=all_began,
        known=all_began if known else 0,
        succeeded=succeeded,
        looked=looked,
        causes=tuple(causes),
        owners=tuple(owners),
        working_owners=succeeded if works is None else works,
    )


def judged(began: dict[str, int], **values: object) -> Correlation:
    """Return the correlation where the last quarter of an hour is as the hour."""
    return correlate(
        tried(HOUR_MS, began, **values),  # type: ignore[arg-type]
        tried(LATELY_MS, began, **values),  # type: ignore[arg-type]
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
    never_met += ("other", *(kind.value for kind in OWN_KINDS), "is_us")
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
    ({"connection_timeout": 2400}, {"succeeded": 1500, "known": False}),
    # Somebody makes names up.
    ({"dns_not_found": 100}, {"known": False}),
    ({"connection_refused": 180}, {"known": False, "succeeded": 8}),
    # Only long dead ones are tried.
    ({}, {"before": {"connection_timeout": 8}}),
]


@pytest.mark.parametrize(("began", "values"), NORMAL)
def test_normal(began: dict[str, int], values: dict[str, object]) -> None:
    """Nothing is concluded from few, from many causes, from what never worked."""
    found = judged(began, **values)
    assert found.verdict.value == "normal", found.explanation
    assert "likely cause" not in found.explanation


def test_nothing_works() -> None:
    """If hardly a server is reached, though they were within the day, it is us."""
    before = {"connection_timeout": 9}
    found = judged({}, before=before, recent=True)
    assert found.verdict.value == "us"
    assert found.explanation.startswith("100 % of long-known servers tried in the last")
    assert judged({}, before=before, recent=True, succeeded=3).verdict.value == "us"
    # They never worked, or have been dead for long: nothing is known of us.
    assert judged({}, before=before).verdict.value == "normal"
    found = judged({}, before=before, recent=True, succeeded=4)
    assert found.verdict.value == "normal"


def test_quiet() -> None:
    """A quarter of an hour in which nothing works is no hour."""
    found = correlate(
        tried(HOUR_MS, {}, before={"dns_failed": 8}, recent=True, succeeded=40),
        tried(LATELY_MS, {}, before={"dns_failed": 8}, recent=True),
    )
    assert found.verdict.value == "normal"


def test_address() -> None:
    """Those that began to fail and lead to one address have that as their cause."""
    found = judged({"connection_timeout": 9}, succeeded=1, address=8)
    assert found.verdict.value == "shared"
    assert found.explanation == (
        "8 of 9 long-known servers that began to fail in the last 15 minutes lead to "
        "the address 192.0.2.1: what runs there, or the way there, is the likely cause"
    )
    assert (
        judged({"connection_timeout": 9}, succeeded=1, address=4).verdict.value == "us"
    )


@given(
    honest=strategies.integers(5, 30),
    works=strategies.integers(0, 30),
    servers=strategies.integers(0, 10_000),
    failing=strategies.booleans(),
    made_up=strategies.integers(0, 10_000),
    kind=strategies.sampled_from(["connection_refused", "http_error"]),
)
def test_one_owner(
    honest: int, works: int, servers: int, failing: bool, made_up: int, kind: str
) -> None:
    """Who has one domain, or one network, tips no scale but that of one owner.

    However many servers answer or fail, and whatever answers that is new.
    """
    attacker = (
        OwnerAttempts({kind: servers}, {kind: servers})
        if failing
        else OwnerAttempts(works=servers)
    )
    real = OwnerAttempts({"dns_failed": 1}, {"dns_failed": 1})
    fails = found_of(*[real] * honest, attacker, works=works, succeeded=made_up)
    if honest >= works + 1:
        assert fails.verdict.value == "us"
    if honest + 1 < works:
        assert fails.verdict.value == "normal"
    # A homeserver that knows hardly anybody.
    for few in range(4):
        found = found_of(*[real] * few, attacker, works=0, succeeded=made_up)
        assert found.verdict.value == "normal"


@given(domains=strategies.integers(5, 100), bait=strategies.integers(0, 7))
@example(domains=9, bait=0)
def test_one_network(domains: int, bait: int) -> None:
    """Many domains with servers in one network are one owner, whatever else they name.

    Who names the networks of very many others counts for nothing.
    """
    owners = [
        OwnerAttempts(
            {"http_error": 1},
            {"http_error": 1},
            addresses=frozenset(
                {f"192.0.2.{number}", *(f"10.{number}.{n}.1" for n in range(bait))}
            ),
        )
        for number in range(domains)
    ]
    assert found_of(*owners, works=1).verdict.value == "normal"
    everywhere = frozenset(f"10.{number}.0.1" for number in range(domains))
    real = [
        OwnerAttempts({"unreachable": 1}, addresses=frozenset({address}))
        for address in everywhere
    ]
    glue = OwnerAttempts(works=1, addresses=everywhere)
    assert found_of(*real, *[glue] * (len(glue.addresses) > 8)).verdict.value == "us"


@pytest.mark.parametrize(
    ("honest", "attackers", "verdict"),
    # As many domains as there are other owners are needed to hide that it is us.
    [(20, 20, "us"), (20, 21, "normal"), (6, 5, "us")],
)
def test_mixture(honest: int, attackers: int, verdict: str) -> None:
    """Others that fail at the same time with another kind hide what is ours no more."""
    real = OwnerAttempts({"connection_timeout": 1})
    kinds = ["http_error", "tls_expired", "rejected"]
    others = [OwnerAttempts({kinds[n % 3]: 1}) for n in range(attackers)]
    found = found_of(*[real] * honest, *others)
    assert found.verdict.value == verdict
    if verdict == "us":
        assert "connection_timeout: the network" in found.explanation


def found_of(*owners: OwnerAttempts, works: int = 0, succeeded: int = 0) -> Correlation:
    """Return the correlation for owners, others that work, and new ones that do."""
    attempts = tried(LATELY_MS, {}, succeeded=works + succeeded, works=works)
    attempts = attempts._replace(owners=owners)
    return correlate(attempts, attempts)


@pytest.mark.parametrize(
    ("names", "owner"),
    [
        (("evil.example", "a.evil.example", "A.B.Evil.Example:8448"), "evil.example"),
        (("x.co.uk", "matrix.x.co.uk:443"), "x.co.uk"),
        (("a.x.com.br", "b.x.com.br"), "x.com.br"),
        # Of a hoster: everybody can have more for nothing.
        (("a.duckdns.org", "b.duckdns.org"), "duckdns.org"),
        # `co` is one only below a country.
        (("a.co.example", "b.co.example"), "co.example"),
        (("localhost", "localhost:8448"), "localhost"),
        (("co.uk",), "co.uk"),
        (("192.0.2.1", "192.0.2.255:8448", "[::ffff:192.0.2.7]"), "192.0.2.0/24"),
        (("[2001:db8::1]", "[2001:db8:0:0:ffff::]:1"), "2001:db8::/64"),
        (("no server",), "no server"),
    ],
)
def test_owner(names: tuple[str, ...], owner: str) -> None:
    """Whose a server is goes by the domain that was registered, or its network."""
    for name in names:
        assert owner_of(name) == owner


def test_sample() -> None:
    """Where not all were looked up, twenty are enough to tell, and ten are not."""
    began = {"connection_refused": 1000}
    found = judged(began, succeeded=9, address=20, looked=20)
    assert found.verdict.value == "shared"
    assert "20 of 20 long-known servers" in found.explanation
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
        "25 % of servers tried in the last hour fail (1 of 4); too few of them are"
    )
    assert judged({}, succeeded=9, before={"gone": 1}).explanation.endswith(
        "nothing suggests that it is for a reason on this side"
    )
