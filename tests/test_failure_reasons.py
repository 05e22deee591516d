# SPDX-License-Identifier: Apache-2.0
"""What exactly is wrong, by what a server says in a handshake or over HTTP.

That real servers are told of so is proven by test_e2e_diagnosis: here is what none of
its servers says.
"""

import json

import pytest

from synapse_federation_admin.diagnosis.findings import Certificate
from synapse_federation_admin.diagnosis.tls import by_their_clock, ending_soon
from synapse_federation_admin.failures.handshakes import default_of, reason_of_handshake
from synapse_federation_admin.failures.kinds import Facts, Failure, FailureKind, Reason
from synapse_federation_admin.failures.responses import http_failure, reason_of_bytes
from synapse_federation_admin.failures.text import message_of

pytestmark = pytest.mark.one_synapse

HOUR = 3_600_000
NOW = 1_800_000_000_000


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        # OpenSSL 1.1 and 3.0; then 3.2 and later.
        ("sslv3 alert handshake failure", Reason.HANDSHAKE_REFUSED),
        ("ssl/tls alert handshake failure", Reason.HANDSHAKE_REFUSED),
        ("wrong version number", Reason.PLAIN_HTTP),
        ("record layer failure, packet length too long", Reason.PLAIN_HTTP),
        ("dh key too small", Reason.WEAK_KEY),
        ("bad signature", None),
    ],
)
def test_handshake(text: str, reason: Reason | None) -> None:
    """OpenSSL's phrases stand for reasons."""
    assert reason_of_handshake(text) is reason


def error(errcode: str, said: str = "No") -> bytes:
    return json.dumps({"errcode": errcode, "error": said}).encode()


PAGE = b"<html><body>"


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (401, error("M_UNAUTHORIZED"), Reason.SIGNATURE_REJECTED),
        # It is not said who wants what.
        (401, b"", None),
        # So others than Synapse say what is no denial.
        (
            403,
            error("M_FORBIDDEN", "Failed to fetch signing keys."),
            Reason.OUR_KEY_NOT_FETCHED,
        ),
        (403, error("M_UNKNOWN"), None),
        (404, error("M_NOT_FOUND"), Reason.HOMESERVER_FAILS),
        (410, b"", None),
        (413, error("M_TOO_LARGE"), None),
        (429, error("M_LIMIT_EXCEEDED"), None),
        (503, b'<input type="password">', Reason.LOGIN_PAGE),
        (521, b"error code: 521", Reason.BACKEND_DOWN),
        (505, b"", Reason.HTTP2_ONLY),
    ],
)
def test_status(status: int, body: bytes, reason: Reason | None) -> None:
    """The status, and whether a homeserver or something before it has answered."""
    assert http_failure(status, body).reason is reason


def test_who_answers() -> None:
    """The sentence names what answers, and where a redirect leads, if that is known."""
    for failure, sentence in (
        (
            http_failure(502, PAGE, server=b"nginx/1.22"),
            "HTTP error: their proxy (nginx/1.22) answers, but not the homeserver "
            "behind it (HTTP 502)",
        ),
        (
            http_failure(302, b"", to=b"https://a.example/b"),
            "HTTP error: it redirects to https://a.example/b, which Synapse does not "
            "follow (HTTP 302)",
        ),
        # As Synapse's client tells of it.
        (
            http_failure(302, b""),
            "HTTP error: it redirects to another URL, which Synapse does not follow "
            "(HTTP 302)",
        ),
    ):
        assert message_of(failure) == sentence


def test_no_answer() -> None:
    """An answer may break off within its first word."""
    assert reason_of_bytes(b"HT") is Reason.BROKE_OFF


def test_default_certificates() -> None:
    """Those with which web servers come are nobody's; a name among others is."""
    assert default_of(["CN=localhost"]) == "the web server"
    assert default_of(["0a.1b.traefik.default", ""]) == "Traefik"
    assert not default_of(["matrix.example", "localhost", "CN=matrix.example"])


def certificate(from_ms: int, until_ms: int) -> Certificate:
    """Return one that is valid between two times from now."""
    return Certificate(
        "CN=a",
        "CN=b",
        (),
        0,
        NOW + from_ms,
        NOW + until_ms,
        until_ms,
        until_ms // (24 * HOUR),
        "",
        1,
    )


EXPIRED = certificate(-99 * HOUR, -9 * HOUR)
EARLY = certificate(9 * HOUR, 99 * HOUR)


@pytest.mark.parametrize(
    ("kind", "seen", "ahead_ms", "reason"),
    [
        (FailureKind.TLS_EXPIRED, EXPIRED, -10 * HOUR, Reason.VALID_BY_THEIR_CLOCK),
        (FailureKind.TLS_EXPIRED, EXPIRED, -8 * HOUR, None),
        (FailureKind.TLS_EXPIRED, EXPIRED, 0, None),
        (FailureKind.TLS_EXPIRED, EXPIRED, None, None),
        (FailureKind.TLS_NOT_YET_VALID, EARLY, 10 * HOUR, Reason.VALID_BY_THEIR_CLOCK),
        (FailureKind.TLS_NOT_YET_VALID, EARLY, 0, Reason.STARTS_LATER),
        (FailureKind.TLS_NOT_YET_VALID, EARLY, None, None),
        (FailureKind.TLS_WRONG_NAME, EXPIRED, -10 * HOUR, None),
    ],
)
def test_clocks(
    kind: FailureKind, seen: Certificate, ahead_ms: int | None, reason: Reason | None
) -> None:
    """Our clock is doubted only if the server's own one says that all is well."""
    date_ts = None if ahead_ms is None else NOW + ahead_ms
    failure = Failure(kind, facts=Facts(ago_ms=9 * HOUR))
    found = by_their_clock(failure, seen, date_ts, NOW)
    assert found.reason is reason
    if reason is Reason.VALID_BY_THEIR_CLOCK:
        assert found.facts.ahead_ms == ahead_ms


def test_ending_soon() -> None:
    """Seven days before a certificate ends it is told, and not when it has ended.

    Of one that lives for six days, as those of Let's Encrypt can, at two.
    """
    for age, days, is_told in (
        (60, 3, True),
        (60, 6.9, True),
        (60, 7.1, False),
        (60, -1, False),
        (0, 6, False),
        (3, 3, False),
        (4.1, 1.9, True),
        (3.5, 6.6, True),
        (1, 3, True),
        (0, 3, True),
    ):
        begins, ends = (int(x * 24 * HOUR) for x in (-age, days))
        assert (ending_soon(certificate(begins, ends)) is not None) == is_told
    assert ending_soon(None) is None
