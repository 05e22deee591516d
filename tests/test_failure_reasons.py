# SPDX-License-Identifier: Apache-2.0
"""What exactly is wrong, by what a server says in a handshake or over HTTP.

That real servers are told of so is proven by test_e2e_diagnosis.
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
        ("tlsv13 alert certificate required", Reason.CLIENT_CERTIFICATE),
        ("sslv3 alert handshake failure", Reason.HANDSHAKE_REFUSED),
        ("ssl/tls alert handshake failure", Reason.HANDSHAKE_REFUSED),
        ("tlsv1 unrecognized name", Reason.NO_SUCH_SITE),
        ("tlsv1 alert internal error", Reason.NO_SUCH_SITE),
        ("tlsv1 alert protocol version", Reason.NO_COMMON_TLS),
        ("unsupported protocol", Reason.NO_COMMON_TLS),
        ("wrong version number", Reason.PLAIN_HTTP),
        ("record layer failure, packet length too long", Reason.PLAIN_HTTP),
        ("tlsv1 alert no application protocol", Reason.HTTP2_ONLY),
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
MISMATCH = error("M_UNAUTHORIZED", "Destination mismatch in auth header")


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (401, error("M_UNAUTHORIZED"), Reason.SIGNATURE_REJECTED),
        (401, MISMATCH, Reason.OTHER_HOMESERVER),
        (401, PAGE, Reason.LOGIN_PAGE),
        # It is not said who wants what.
        (401, b"", None),
        (403, error("M_FORBIDDEN"), Reason.DENIED_BY_POLICY),
        # So others than Synapse say what is no denial.
        (403, error("M_FORBIDDEN", "Invalid destination."), Reason.OTHER_HOMESERVER),
        (
            403,
            error("M_FORBIDDEN", "Failed to verify X-Matrix signatures."),
            Reason.SIGNATURE_REJECTED,
        ),
        (
            403,
            error("M_FORBIDDEN", "Failed to fetch signing keys."),
            Reason.OUR_KEY_NOT_FETCHED,
        ),
        (
            401,
            error("M_UNAUTHORIZED", "Failed to find any key to satisfy: _Fetch()"),
            Reason.OUR_KEY_NOT_FETCHED,
        ),
        (
            401,
            error("M_UNAUTHORIZED", "Missing Authorization headers"),
            Reason.SIGNATURE_REMOVED,
        ),
        (403, error("M_UNKNOWN"), None),
        (403, PAGE, Reason.FORBIDDEN_BY_PROXY),
        (403, b"<title>Just a moment...</title>", Reason.CHALLENGE_PAGE),
        (404, error("M_UNRECOGNIZED"), Reason.FEDERATION_LISTENER_MISSING),
        (404, error("M_NOT_FOUND"), Reason.HOMESERVER_FAILS),
        (404, PAGE, Reason.NOT_ROUTED),
        (410, b"", None),
        (413, error("M_TOO_LARGE"), None),
        (429, error("M_LIMIT_EXCEEDED"), None),
        (500, error("M_UNKNOWN"), Reason.HOMESERVER_FAILS),
        (500, PAGE, Reason.WEB_SERVER_FAILS),
        (502, PAGE, Reason.BACKEND_DOWN),
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
    login = http_failure(302, b"", to=b"https://sso.example/login")
    assert login.reason is Reason.LOGIN_PAGE


@pytest.mark.parametrize(
    ("begins", "reason"),
    [
        (b"HT", Reason.BROKE_OFF),
        (b"HTTP/1.1 200 OK\r\nConte", Reason.BROKE_OFF),
        (b"\0\0\x12\4\0\0\0\0\0", Reason.HTTP2_ONLY),
        (b"220 mail.example ESMTP", Reason.NO_HTTP),
    ],
)
def test_no_answer(begins: bytes, reason: Reason) -> None:
    """What comes in place of an answer is told by how it begins."""
    assert reason_of_bytes(begins) is reason


def test_default_certificates() -> None:
    """Those with which web servers come are nobody's; a name among others is."""
    assert default_of(["CN=TRAEFIK DEFAULT CERT"]) == "Traefik"
    assert default_of(["0a.1b.traefik.default", ""]) == "Traefik"
    assert default_of(["CN=Plesk,O=Plesk"]) == "Plesk"
    assert default_of(["CN=localhost"]) == "the web server"
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
