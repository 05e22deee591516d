# SPDX-License-Identifier: Apache-2.0
"""Tells whether servers fail together, and whether it is us: by what was tried lately.

How that is judged is pure. What it is judged by is read here, and where servers lead is
looked up.
"""

from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from enum import Enum
from functools import partial
from typing import NamedTuple

from synapse.module_api import LoggingTransaction

from synapse_federation_admin import limits
from synapse_federation_admin.destinations.costly import Costly
from synapse_federation_admin.destinations.senders import Sender
from synapse_federation_admin.failures.kinds import FailureKind
from synapse_federation_admin.failures.together import (
    OurPart,
    explain_nothing,
    explain_senders,
    explain_shared,
    explain_us,
)
from synapse_federation_admin.history.owners import network_of
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage import outages, records
from synapse_federation_admin.storage.recent_attempts import (
    CauseType,
    OwnerAttempts,
    RecentAttempts,
    not_looked_up_txn,
    recent_attempts_txn,
)
from synapse_federation_admin.storage.schema import Tables

_HOUR_MS = 3_600_000
_LATELY_MS = 900_000

# If so many destinations began to fail within the hour, it is worth to look where they
# lead; how often, and how long that is good for.
_WORTH_LOOKING = 5
_LOOK_EVERY_MS = 60_000
_FIRST_MS = 4000
_LOOK_AGAIN_MS = 6 * _HOUR_MS

# How old what decides on that may be: it is read once a minute (`outages`).
_READ_WITHIN_MS = 90_000

# For how long a server has to have answered to be known for long: a day; while less is
# recorded than four, a quarter of that.
_KNOWN_MS = 24 * _HOUR_MS
_KNOWN_SHARE = 4

# Of fewer owners of servers, or fewer servers, nothing can be told.
_LEAST = 5

# The share of those known for long that has to begin to fail for a cause of ours, or to
# fail if they began to within a day.
_MANY = 0.5

# The share of those that share a cause, for it to be the cause; and of how many at most
# it has to be known where they lead.
_MOST = 0.75
_SAMPLE = 20

# To how many networks the servers of one owner may lead. Who has more in the DNS may
# mean to be taken for others.
_NETWORKS = 8

# Kinds that are one thing, seen from different sides, and what of ours it is likely to
# be if most servers fail with them.
_DNS = (FailureKind.DNS_FAILED, FailureKind.DNS_NOT_FOUND)
_NO_WAY = (
    FailureKind.CONNECTION_TIMEOUT,
    FailureKind.UNREACHABLE,
    FailureKind.CONNECTION_REFUSED,
)
_OURS: tuple[tuple[tuple[FailureKind, ...], OurPart], ...] = (
    (_DNS, OurPart.RESOLVER),
    (_NO_WAY, OurPart.NETWORK_OR_PROXY),
    ((*_DNS, *_NO_WAY), OurPart.NETWORK),
    ((FailureKind.PROXY_FAILED,), OurPart.PROXY),
    ((FailureKind.IP_BLOCKED,), OurPart.BLACKLIST),
    ((FailureKind.TLS_EXPIRED, FailureKind.TLS_NOT_YET_VALID), OurPart.CLOCK),
    ((FailureKind.TLS_UNTRUSTED,), OurPart.TRUST),
    ((FailureKind.TLS_WRONG_NAME, FailureKind.TLS_FAILED), OurPart.INTERCEPTION),
    ((FailureKind.REJECTED,), OurPart.SIGNING_KEY),
    ((FailureKind.RATE_LIMITED,), OurPart.RATE),
    ((FailureKind.RESPONSE_TIMEOUT, FailureKind.INVALID_RESPONSE), OurPart.LOAD),
    (
        (FailureKind.HTTP_ERROR, FailureKind.GONE, FailureKind.TOO_LARGE),
        OurPart.REQUESTS,
    ),
)


class CorrelationVerdict(Enum):
    """Whose fault it is likely to be when servers fail."""

    # Nothing out of the ordinary.
    NORMAL = "normal"

    # This homeserver's: its resolver, its network, its clock.
    US = "us"

    # That of something which several other servers share.
    SHARED = "shared"


class Correlation(NamedTuple):
    """Whether servers began to fail together, and what they share.

    Attributes:
        verdict: `normal`; `us`: the cause is likely to be this homeserver's; `shared`:
            something that several other servers share.
        explanation: The same for people, in a sentence.
        last_hour: What was tried in the last hour.
        lately: What was tried in the last 15 minutes.
        can_be_told: Whether enough servers that are known for long were tried to tell;
            if not, `normal` says nothing of whose fault it is.
    """

    verdict: CorrelationVerdict
    explanation: str
    last_hour: RecentAttempts
    lately: RecentAttempts
    can_be_told: bool = True


def correlate(last_hour: RecentAttempts, lately: RecentAttempts) -> Correlation:
    """Judge what was tried.

    Args:
        last_hour: In the last hour.
        lately: In the last quarter of an hour.
    """
    # What is in both is told of the shorter time, which says more.
    for window, judge in (
        (lately, _began_together),
        (last_hour, _began_together),
        (last_hour, _nothing_works),
        (lately, _one_of_theirs),
        (last_hour, _one_of_theirs),
    ):
        found = judge(window)
        if found is not None:
            verdict, explanation = found
            return Correlation(verdict, explanation, last_hour, lately)
    can_be_told = last_hour.working_owners + len(last_hour.owners) >= _LEAST
    explanation = explain_nothing(
        last_hour.failing,
        last_hour.total,
        last_hour.window_ms,
        can_be_told=can_be_told,
        unanswered=last_hour.unanswered,
    )
    return Correlation(
        CorrelationVerdict.NORMAL, explanation, last_hour, lately, can_be_told
    )


_Judgement = tuple[CorrelationVerdict, str] | None


def _began_together(attempts: RecentAttempts) -> _Judgement:
    """Tell of a cause on our side, if many servers began to fail with it.

    Any homeserver knows servers that are long dead, and meets others that have never
    worked, by the thousand when somebody joins an old room or makes names up: what
    counts is how many of those known for long began to fail.
    """
    return _ours(attempts, [owner.began for owner in attempts.owners], _MANY)


def _nothing_works(attempts: RecentAttempts) -> _Judgement:
    """Tell of a cause on our side, if hardly a server is reached for an hour.

    Of those known for long that did not fail a day before.
    """
    return _ours(attempts, [owner.recent for owner in attempts.owners], _MOST)


def _ours(
    attempts: RecentAttempts, failing: Sequence[Mapping[str, int]], share: float
) -> _Judgement:
    """Tell what of ours may be the cause.

    Each owner counts once, however many servers they have, or less if others have
    servers in the same network: who wants to have us look broken, or healthy, would
    make such up.

    Args:
        attempts: What was tried.
        failing: How many servers fail that matter, by kind: of each of its owners.
        share: The share of all owners that has to fail with the same.
    """
    if _lead_to_one(
        [owner for owner, of in zip(attempts.owners, failing, strict=True) if of]
    ):
        return None
    counts: dict[str, float] = defaultdict(float)
    working = float(attempts.working_owners)
    for owner, of, weight in zip(
        attempts.owners, failing, _weights(attempts), strict=True
    ):
        tried = owner.works + sum(of.values())
        if tried:
            working += weight * owner.works / tried
            for kind, count in of.items():
                counts[kind] += weight * count / tried
    all_failing = sum(counts.values())
    least = max(_LEAST, share * (all_failing + working))
    for most in (_MOST, 0):
        for family, ours in _OURS:
            kinds = [kind.value for kind in family if kind.value in counts]
            with_them = sum(counts[kind] for kind in kinds)
            if with_them >= max(least, most * all_failing):
                return CorrelationVerdict.US, explain_us(
                    ours, kinds, with_them, all_failing + working, attempts.window_ms
                )
    return None


def _weights(attempts: RecentAttempts) -> list[float]:
    """Return how much each owner counts, from 0 to 1."""
    networks = list(map(_networks, attempts.owners))
    # Who names very many takes nothing from those that are there.
    owners_in = Counter(
        network for of in networks if len(of) <= _NETWORKS for network in of
    )
    return [
        1 / max((owners_in[network] for network in of), default=1)
        if len(of) <= _NETWORKS
        else 0
        for of in networks
    ]


def _lead_to_one(failing: Sequence[OwnerAttempts]) -> bool:
    """Tell whether the servers of most owners lead to one network, also in a sample."""
    looked = [owner for owner in failing if owner.addresses]
    if len(looked) < min(len(failing), _SAMPLE):
        return False
    owners_in = Counter(network for owner in looked for network in _networks(owner))
    return max(owners_in.values(), default=0) >= max(_LEAST, _MOST * len(looked))


def _networks(owner: OwnerAttempts) -> set[str]:
    return set(map(network_of, owner.addresses))


def _one_of_theirs(attempts: RecentAttempts) -> _Judgement:
    """Tell of a cause that those who began to fail share, and others do not."""
    if attempts.known < _LEAST:
        return None
    causes = []
    if attempts.looked >= min(attempts.known, _SAMPLE):
        causes += [(c, attempts.looked) for c in attempts.causes_of(CauseType.ADDRESS)]
    if attempts.succeeded:
        # Else it may be our clock, and most servers have the same few issuers.
        causes += [(c, attempts.known) for c in attempts.causes_of(CauseType.ISSUER)]
    for cause, of in causes:
        if cause.known < max(_LEAST, _MOST * of):
            continue
        explanation = explain_shared(
            cause.value,
            cause.known,
            of,
            attempts.window_ms,
            is_address=cause.type is CauseType.ADDRESS,
        )
        return CorrelationVerdict.SHARED, explanation
    return None


def with_senders(found: Correlation, senders: Iterable[Sender]) -> Correlation:
    """Judge anew, with what is known of our own senders.

    Those that stand still are the cause of whatever does not arrive, and of failures
    that are not met.
    """
    names = [sender.instance for sender in senders if sender.stands_still]
    if not names:
        return found
    why = explain_senders(list(filter(None, names)))
    return Correlation(CorrelationVerdict.US, why, found.last_hour, found.lately)


# -- what it is judged by --------------------------------------------------------------

# Finds the addresses of destinations; those of which there are none are left out.
FindAddresses = Callable[[Sequence[str]], Awaitable[dict[str, list[str]]]]


class RecentAttemptsStore:
    """Knows what was tried lately. Every method raises what the database raises."""

    def __init__(
        self, homeserver: Homeserver, tables: Tables, find_addresses: FindAddresses
    ) -> None:
        self._homeserver = homeserver
        self._tables = tables
        self._find_addresses = find_addresses
        self._told = Costly(
            homeserver, "federation_admin_outlook", self._correlation, waits_always=True
        )
        # What was read last, and when.
        self._latest: tuple[int, Correlation] | None = None

    def start(self) -> None:
        """Begin to look where servers lead that began to fail together.

        If this process runs background tasks.
        """
        if self._homeserver.runs_background_tasks:
            self._homeserver.every(
                "federation_admin_addresses",
                _LOOK_EVERY_MS,
                partial(self.look_up, _READ_WITHIN_MS),
                first_after_ms=_FIRST_MS,
            )

    async def correlation(self, max_age_ms: int = 0) -> Correlation:
        """Tell whether servers fail together; once for all who ask at the same time.

        Where reading it takes long, what was read in the last ten seconds is told.

        Args:
            max_age_ms: What was read before is good enough if it is no older.
        """
        now_ts = self._homeserver.now_ms()
        if self._latest and now_ts - max_age_ms < self._latest[0] <= now_ts:
            return self._latest[1]
        found = await self._told.get()
        assert found is not None
        return found

    async def _correlation(self) -> Correlation:
        return await self._tables.run("federation_admin_outlook", self.correlation_txn)

    def correlation_txn(self, txn: LoggingTransaction) -> Correlation:
        """Tell whether servers fail together, and keep that for who asks next."""
        now_ts = self._homeserver.now_ms()
        known_ms = _known_ms(txn, now_ts)
        hour, lately = (
            recent_attempts_txn(txn, window_ms, known_ms, now_ts)
            for window_ms in (_HOUR_MS, _LATELY_MS)
        )
        found = correlate(hour, lately)
        self._latest = now_ts, found
        return found

    async def look_up(self, max_age_ms: int = 0) -> None:
        """Find out where destinations lead that began to fail together.

        On the process that runs background tasks, now and then.

        Args:
            max_age_ms: How old it may be whether they did.
        """
        now_ts = self._homeserver.now_ms()
        correlation = await self.correlation(max_age_ms)
        if correlation.last_hour.began < _WORTH_LOOKING:
            return
        names = await self._tables.run(
            "federation_admin_addresses",
            lambda txn: not_looked_up_txn(
                txn,
                since_ts=now_ts - _HOUR_MS,
                known_ms=_known_ms(txn, now_ts),
                looked_ts=now_ts - _LOOK_AGAIN_MS,
                limit=limits.CORRELATED_SERVERS,
            ),
        )
        if not names:
            return
        found = await self._find_addresses(names)
        found = {name: found.get(name, []) for name in names}
        await self._tables.run(
            "federation_admin_addresses",
            lambda txn: records.write_addresses_txn(txn, found, now_ts),
        )


def _known_ms(txn: LoggingTransaction, now_ts: int) -> int:
    """Return for how long a server has to have answered to be known for long."""
    since_ts = outages.recorded_since_txn(txn, now_ts)
    if since_ts is None:
        return _KNOWN_MS
    return min(_KNOWN_MS, max(0, now_ts - since_ts) // _KNOWN_SHARE)
