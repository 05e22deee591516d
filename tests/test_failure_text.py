# SPDX-License-Identifier: Apache-2.0
"""Failures in words: all of the table, and what of facts is in a sentence."""

import re

import pytest

from synapse_federation_admin import limits
from synapse_federation_admin.failures.kinds import Facts, Failure, FailureKind, Reason
from synapse_federation_admin.failures.text import (
    Effect,
    Remark,
    Situation,
    advice_of,
    detail_of,
    message_of,
    shown_duration,
)

pytestmark = pytest.mark.one_synapse

DAY_MS = 86_400_000

# All that can be known, as long as a hostile server can make it.
LONGEST = Facts(
    host="h" * 230,
    address="2001:db8:1111:2222:3333:4444:5555:6666",
    port=65535,
    more=12,
    status=404,
    errcode="M_" + "X" * 98,
    said="s" * 300,
    exception="e" * 300,
    code=20,
    issuer="CN=" + "i" * 147,
    names=("n" * 100,) * 20,
    ago_ms=999 * DAY_MS,
    left_ms=999 * DAY_MS,
    ahead_ms=-999 * DAY_MS,
    also=(FailureKind.TLS_WRONG_NAME, FailureKind.TLS_UNTRUSTED),
    cause=Failure(FailureKind.INVALID_NAME, Reason.NAME_NOT_ASCII),
    is_relayed=True,
)
REASONED = [
    *((FailureKind.OTHER, reason) for reason in Reason),
    (FailureKind.TLS_NOT_YET_VALID, Reason.OWN_CERTIFICATE),
    (FailureKind.RATE_LIMITED, Reason.KEYS_REQUEST),
]
FAILURES = [
    Failure(kind, reason, facts)
    for kind, reason in [*((kind, None) for kind in FailureKind), *REASONED]
    for facts in (Facts(), LONGEST)
]

# What nobody searches for, and what is not said of admins.
CLUMSY = re.compile(r"comes? about|no way to|forgotten|\bhe\b|\bhis\b|\bno such\b")


@pytest.mark.parametrize("failure", FAILURES, ids=lambda f: f"{f.kind}{f.reason}")
def test_words(failure: Failure) -> None:
    """A short sentence in plain words, advice, and whose fault it is."""
    message, advice = message_of(failure), advice_of(failure)
    assert message[0].isupper()
    assert not re.search(r"[^.]\.$", message)
    assert len(message) <= limits.SENTENCE
    assert advice.endswith(".")
    assert Situation(Effect.STOPS, failure).fault
    for text in (message, advice, detail_of(failure)):
        assert text.isprintable()
        assert text.isascii()
        assert not re.search(
            r"[{}](?!\")", text.replace('{"m.server": "host:port"}', "")
        )
        assert not CLUMSY.search(text)


@pytest.mark.parametrize("effect", Effect)
@pytest.mark.parametrize("left_ms", [None, 0, 31 * 3_600_000, 2**53])
def test_situations(effect: Effect, left_ms: int | None) -> None:
    """Whatever comes of a failure, explanation and advice are bounded sentences."""
    for failure in (None, *FAILURES):
        if failure is None and effect is not Effect.NONE:
            continue
        left_ms = None if effect is Effect.STOPS else left_ms
        situation = Situation(effect, failure, tuple(Remark), left_ms)
        explanation, advice = situation.explanation, situation.advice
        assert len(advice) <= limits.ADVICE, advice
        for text in (explanation, advice):
            assert text.endswith(".")
            assert "  " not in text


def test_facts() -> None:
    """Dates, names, places and answers are in the sentence."""
    for kind, reason, facts, message in (
        (
            FailureKind.CONNECTION_REFUSED,
            None,
            Facts(address="192.0.2.1", port=8448, more=2),
            "Connection refused: the server is down or its port is closed (192.0.2.1 "
            "port 8448 and 2 more)",
        ),
        (
            FailureKind.REJECTED,
            None,
            Facts(status=403, errcode="M_FORBIDDEN", said="Not you"),
            "Requests rejected: the server is up, but does not accept them from this "
            "homeserver (HTTP 403 M_FORBIDDEN Not you)",
        ),
        (
            FailureKind.TLS_EXPIRED,
            Reason.OWN_CERTIFICATE,
            Facts(ago_ms=3 * DAY_MS, also=(FailureKind.TLS_WRONG_NAME,)),
            "Expired TLS certificate: the server's own certificate expired 3 days ago; "
            "also: TLS certificate for another host name",
        ),
        (
            FailureKind.TLS_WRONG_NAME,
            None,
            Facts(names=("one.example", "two.example"), host="a.example"),
            "TLS certificate for another host name: it is for one.example, "
            "two.example, not for a.example",
        ),
        (
            FailureKind.WELL_KNOWN_UNREACHABLE,
            None,
            Facts(cause=Failure(FailureKind.TLS_UNTRUSTED)),
            "Cannot fetch /.well-known/matrix/server: untrusted certificate chain",
        ),
        (
            FailureKind.WELL_KNOWN_INVALID,
            Reason.M_SERVER_INVALID,
            Facts(
                said="a/b", cause=Failure(FailureKind.INVALID_NAME, Reason.NAME_IS_URL)
            ),
            "Invalid /.well-known/matrix/server: m.server is not a server name: a "
            "server name has no scheme and no path (a/b)",
        ),
        (
            FailureKind.REJECTED,
            Reason.CLOCK,
            Facts(ahead_ms=-7_200_000),
            "Requests rejected: their clock is 2 h behind ours",
        ),
    ):
        assert message_of(Failure(kind, reason, facts)) == message


def test_advice() -> None:
    """A reset is advised where it helps, and else it is said that it does not."""
    refused = Failure(FailureKind.CONNECTION_REFUSED)
    limited = Failure(FailureKind.RATE_LIMITED)
    in_vain = "Resetting the connection does not help."
    assert in_vain in Situation(Effect.STOPS, refused).advice
    assert in_vain not in Situation(Effect.STOPS, limited).advice
    assert Situation(Effect.NONE).advice == "Nothing to do."
    assert Situation(Effect.NONE, backoff_left_ms=31 * 3_600_000).advice == (
        "Synapse retries only in 31 h: reset the connection."
    )


def test_advice_about_caches() -> None:
    """How long something is cached is a time, and not the name of a key."""
    failure = Failure(FailureKind.OTHER, Reason.CACHED_ABSENCE, Facts(left_ms=DAY_MS))
    assert advice_of(failure) == (
        "Wait 24 h until it expires, or restart Synapse with its workers."
    )


def test_advice_about_clocks() -> None:
    """Where clocks differ and nothing fails, nobody has to be asked."""
    advice = [
        advice_of(Failure(kind, Reason.CLOCK))
        for kind in (FailureKind.OTHER, FailureKind.REJECTED)
    ]
    alone = "Set the clock that is wrong, with NTP."
    assert advice == [alone, f"{alone} If requests still fail then, ask their admin."]


def test_durations() -> None:
    """In the largest unit of which there are two."""
    shown = [shown_duration(n * 1000) for n in (0, 119, 120, 7199, 7200, 172_800)]
    assert shown == ["0 s", "119 s", "2 min", "119 min", "2 h", "2 days"]
