# SPDX-License-Identifier: Apache-2.0
"""Failures in words: all of the table, and what of facts is in a sentence."""

import re
from collections.abc import Iterator

import attr
import pytest
from faults import ADVICE

from synapse_federation_admin import limits
from synapse_federation_admin.failures.kinds import (
    Facts,
    Failure,
    FailureKind,
    Fault,
    How,
    Link,
    Reason,
)
from synapse_federation_admin.failures.situation import (
    Effect,
    LastRequest,
    RealTraffic,
    Remark,
    Situation,
)
from synapse_federation_admin.failures.text import (
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
    subject="O=" + "o" * 70 + ", CN=" + "c" * 70,
    server="v" * 100,
    took_ms=999 * DAY_MS,
    names=("n" * 100,) * 20,
    ago_ms=999 * DAY_MS,
    left_ms=999 * DAY_MS,
    until_ts=2**60,
    most_bytes=2**30,
    target="t" * 300,
    ahead_ms=-999 * DAY_MS,
    also=(FailureKind.TLS_WRONG_NAME, FailureKind.TLS_UNTRUSTED),
    cause=Failure(FailureKind.INVALID_NAME, Reason.NAME_NOT_ASCII),
    is_relayed=True,
    others=1999,
)
NAME = "n" * 300
WAYS = (
    (),
    *((Link(how, NAME, 65535),) for how in How),
    (Link(How.FILE_WITHOUT_PORT, NAME, 8448), Link(How.SERVICE, NAME, 65535)),
)

# What nobody searches for, and what is not said of admins.
CLUMSY = re.compile(r"comes? about|no way to|forgotten|\bhe\b|\bhis\b|\bno such\b")

# Words of libraries: names of exceptions, tuples, OpenSSL's phrases.
FOREIGN = re.compile(
    r"[a-z](Error|Exception|Failure)\b|\[\(|\('|Errno|SSL routines|_ERR_"
)

# Who has to act.
WHO = re.compile(
    r"their admin|Nothing to do|Nobody has to|this (host|homeserver|process)|Synapse|"
    r"Wait|Try again|Check|Set|Raise"
)


def failures() -> Iterator[Failure]:
    """Yield failures with no facts and the longest: every kind by any way, and each
    reason with a third of the kinds, in turn."""
    for kind in FailureKind:
        # How we got there is told of each by itself.
        yield from (Failure(kind, None, attr.evolve(LONGEST, via=via)) for via in WAYS)
        yield Failure(kind)
    for number, reason in enumerate(Reason):
        for kind in [*FailureKind][number % 3 :: 3]:
            yield Failure(kind, reason, attr.evolve(LONGEST, via=WAYS[-1]))
            yield Failure(kind, reason)


def test_words() -> None:
    """Whatever fails, however we got there: bounded sentences, and who has to act."""
    for failure in failures():
        situation = Situation(Effect.STOPS, failure, tuple(Remark), also=failure)
        advice = advice_of(failure)
        assert situation.fault
        assert message_of(failure)[0].isupper()
        assert not re.search(r"[^.]\.$", message_of(failure)), failure
        assert len(advice) <= ADVICE
        assert advice.endswith(".")
        assert WHO.search(advice), advice
        for sentence in situation.sentences:
            assert len(sentence) <= limits.SENTENCE, sentence
            assert sentence.endswith("."), sentence
        for text in (*situation.sentences, situation.advice, detail_of(failure)):
            assert text.isprintable()
            assert text.isascii()
            assert not re.search(
                r"[{}](?!\")", text.replace('{"m.server": "host:port"}', "")
            )
            assert not CLUMSY.search(text)
            assert "  " not in text
        for text in (*situation.sentences, situation.advice):
            assert not FOREIGN.search(text), text


@pytest.mark.parametrize("effect", Effect)
@pytest.mark.parametrize("left_ms", [None, 0, 31 * 3_600_000, 2**53])
def test_situations(effect: Effect, left_ms: int | None) -> None:
    """Whatever comes of a failure, the advice as a whole is bounded."""
    left_ms = None if effect is Effect.STOPS else left_ms
    for failure in failures():
        if failure.kind is not FailureKind.OTHER and failure.reason:
            continue
        situation = Situation(effect, failure, (), left_ms)
        assert len(situation.advice) <= ADVICE, situation.advice
        assert situation.advice.endswith(".")
    nothing = Situation(Effect.NONE, None, tuple(Remark), left_ms)
    assert len(nothing.advice) <= ADVICE
    assert all(len(text) <= limits.SENTENCE for text in nothing.sentences)


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
            "Expired TLS certificate: the server's own certificate expired 3 d ago; "
            "also: TLS certificate for another host name",
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
            'Invalid /.well-known/matrix/server: m.server is "a/b": a server name has '
            "no scheme and no path",
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
        "Synapse retries only in 1 d 7 h: reset the connection."
    )


@pytest.mark.parametrize("effect", Effect)
def test_contradictions(effect: Effect) -> None:
    """Beside a failure, and beside something to do, nobody is told that all is well."""
    real = RealTraffic(LastRequest.FAILED, 1000, FailureKind.HTTP_ERROR)
    for failure in failures():
        if failure.reason in (Reason.CALLED_OFF, Reason.OWN_NAME):
            # They are of this homeserver itself.
            continue
        situation = Situation(effect, failure, (), 60_000, real=real)
        assert "Nothing to do" not in situation.advice
    said = Situation(effect, real=real).explanation
    assert not said.startswith("Federation works, but"), said
    long = Situation(effect, Failure(FailureKind.OTHER), tuple(Remark), real=real)
    assert all(len(text) <= limits.SENTENCE for text in long.sentences)


def test_unproven() -> None:
    """Where the last real request failed, what is not in order is not all of it."""
    soon = Failure(FailureKind.OTHER, Reason.EXPIRES_SOON, Facts(left_ms=2 * DAY_MS))
    for last, says, is_to_reconnect in (
        (LastRequest.FAILED, "The server answers, but", True),
        (LastRequest.SUCCEEDED, "Federation works, but", False),
    ):
        real = RealTraffic(last, 1000, FailureKind.HTTP_ERROR, 2000)
        situation = Situation(Effect.WORKS, soon, real=real)
        assert situation.explanation.startswith(says)
        assert ("Reconnect:" in situation.advice) == is_to_reconnect


def test_links() -> None:
    """Whose fault it is goes by how a request came to a place that is not there."""
    file = Link(How.FILE_WITHOUT_PORT, "b.example", 8448)
    service = Link(How.SERVICE, "t.example", 9)
    for via in ((), (file,), (service,), (file, service)):
        facts = Facts(host="t.example", via=via)
        gone = Failure(FailureKind.DNS_NOT_FOUND, Reason.NO_SUCH_HOST, facts)
        situation = Situation(Effect.STOPS, gone)
        assert situation.fault is (Fault.THEM if via else Fault.UNKNOWN)
        # What it says is in the catalogue of faults.
        assert len(situation.sentences) == (2 if via else 1)


def test_two_facts() -> None:
    """A file that is wrong, and a port that is closed, are two sentences."""
    file = Failure(FailureKind.WELL_KNOWN_INVALID, Reason.BODY_EMPTY)
    refused = Failure(FailureKind.CONNECTION_REFUSED)
    situation = Situation(Effect.STOPS, file, (Remark.FILE_IS_WHY,), also=refused)
    assert situation.sentences == [
        "Invalid /.well-known/matrix/server: the response is empty.",
        "Without the file, requests go to the server name itself, port 8448.",
        "Connection refused: the server is down or its port is closed.",
    ]
    assert "Or the homeserver has to be at port 8448." in situation.advice


def test_one_of_several() -> None:
    """Of a host that does not exist there is no address to take out of the DNS."""
    via = (Link(How.SERVICE, "t.example", 9),)
    gone = Failure(FailureKind.DNS_NOT_FOUND, Reason.NO_SUCH_HOST, Facts(via=via))
    advice = Situation(Effect.NEXT_ADDRESS, gone).advice
    assert advice.startswith(
        "Tell their admin: the SRV record has to name a valid host"
    )


def test_unblocking() -> None:
    """Nobody is told to unblock an address that is internal."""
    for reason in Reason:
        if "internal" in reason.value:
            advice = advice_of(Failure(FailureKind.IP_BLOCKED, reason))
            assert "blacklist" not in advice
            assert "whitelist" not in advice


def test_advice_about_clocks() -> None:
    """Where clocks differ and nothing fails, nobody has to be asked."""
    advice = [
        advice_of(Failure(kind, Reason.CLOCK))
        for kind in (FailureKind.OTHER, FailureKind.REJECTED)
    ]
    alone = "Set the clock that is wrong, with NTP."
    assert advice == [alone, f"{alone} If requests still fail then, ask their admin."]


def test_durations() -> None:
    """As everywhere else; and of what was just now, that it was a second ago."""
    shown = [shown_duration(n * 1000) for n in (0, 107, 660, 7199, 172_800, 604_800)]
    assert shown == ["1 s", "1 min 47 s", "11 min", "1 h 59 min", "2 d", "7 d"]
