# SPDX-License-Identifier: Apache-2.0
"""The catalogue of faults: answers and keys, and what works, but."""

import time
from collections.abc import Callable

from faults import (
    BEGUN,
    BEGUN_LIST,
    ESC,
    PAGE_NOT_FOUND,
    TEXT,
    fault,
    placed,
    redirect,
    serving,
    site,
    slowly,
)
from faults_tls import version
from laboratory import (
    HTML,
    UNRECOGNIZED,
    Answer,
    Laboratory,
    as_json,
    close,
    hang,
    homeserver,
    http,
    repeat,
)

from synapse_federation_admin.playground.events import Identity

# Answers, the same to everything.

FORBIDDEN = http("403 Forbidden")
LIMITED = http("429 Too Many Requests")
SERVER_ERROR = http("500 Internal Server Error")
FORBIDDEN_BY_MATRIX = as_json({"errcode": "M_FORBIDDEN"}, status="403 Forbidden")
UNAUTHORIZED = as_json({"errcode": "M_UNAUTHORIZED"}, status="401 No")
EVERYWHERE: dict[str, Answer] = {
    "404 http_error": PAGE_NOT_FOUND,
    "410 gone": http("410 Gone", b""),
    "413 too_large": http("413 Payload Too Large"),
    "list invalid_response": as_json([1]),
    "no-type invalid_response": http("200 OK", b"{}", b""),
    "odd-redirect http_error": redirect(b"\x1b[3\xff"),
    "broken-json invalid_response": http("200 OK", b"{"),
    "closes invalid_response": close,
    "hangs response_timeout": hang,
}
for line, answer in EVERYWHERE.items():
    label, kind = line.split()
    serving(f"all-{label} failing {kind}", answer)

# HTTP.

NGINX = HTML + b"Server: nginx/1.22.1\r\n"
CHALLENGE = b"<html><title>Just a moment...</title>"
LOGIN = b'<html><form><input type="password"></form>'
SETTINGS = b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + b"\x00\x03\x00\x00\x00\x80" * 3
GOAWAY = b"\x00\x00\x08\x07\x00\x00\x00\x00\x00" + b"\x00" * 7 + b"\x01"
for line, answer in {
    "proxy-502 http_error/backend_down": http("502 Bad Gateway", b"<html>", NGINX),
    "fails-500 http_error/web_server_fails": http("500 No", b"<html>", NGINX),
    "matrix-500 http_error/homeserver_fails": as_json(
        {"errcode": "M_UNKNOWN", "error": "Internal server error"}, status="500 No"
    ),
    "unrecognized http_error/federation_listener_missing": UNRECOGNIZED,
    "proxy-403 rejected/forbidden_by_proxy": http("403 No", b"<html>", NGINX),
    "denied rejected/denied_by_policy": as_json(
        {"errcode": "M_FORBIDDEN", "error": "Federation denied with lab"},
        status="403 No",
    ),
    "other-destination rejected/other_homeserver": as_json(
        {"errcode": "M_UNAUTHORIZED", "error": "Destination mismatch in auth header"},
        status="401 No",
    ),
    "basic-auth rejected/login_page": http("401 No", b"<html>", NGINX),
    "login-redirect http_error/login_page": redirect(b"https://sso.lab/login?rd=x"),
    "login-page invalid_response/login_page": http("200 OK", LOGIN, HTML),
    "challenge rejected/challenge_page": http("403 No", CHALLENGE, HTML),
    "moved http_error/redirect": redirect(b"https://www.lab.example/matrix"),
    "web-site invalid_response/web_site": http("200 OK", b"<html>", NGINX),
    "misdirected http_error/misdirected": http("421 No", b"<html>", NGINX),
    "firewall http_error/forbidden_by_proxy": http("406 No", b"<html>", HTML),
    "large-page http_error/not_routed": http("404 No", b"<html>" * 20_000, HTML),
    "empty invalid_response/body_empty": http("200 OK", b"", b"Server: Caddy\r\n"),
    "nginx-certificate http_error/client_certificate": http(
        "400 Bad Request", b"<html>No required SSL certificate was sent", NGINX
    ),
    "broken-off invalid_response/broke_off": (
        BEGUN + b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    ),
    "chunks-broken-off invalid_response/broke_off": (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n5\r\n{"
    ),
    "headers-broken-off invalid_response/broke_off": b"HTTP/1.1 200 OK\r\nContent-",
    "http2 invalid_response/http2_only": SETTINGS + GOAWAY,
    "ssh invalid_response/no_http": b"SSH-2.0-OpenSSH_9.2\r\n" * 50,
}.items():
    label, kind = line.split()
    serving(f"{label} failing {kind}", answer)

# Works, but.


@fault("slow-answers degraded other/slow", "took 5.")
def _(lab: Laboratory, name: str) -> None:
    answers = {path: slowly(answer, 5.1) for path, answer in homeserver(name).items()}
    lab.serve(placed(lab, name), 8448, answers, name)


# Answers to one request.

ENDLESS_LIST = repeat(b'"x", ' * 1000, BEGUN_LIST)
DEEP_LIST = http("200 OK", b"[" * 50_000)
FOLDED = b"Content-Type: a" + b"\r\n \x1b[31m\x07b" * 5000 + b"\r\n"
HOSTILE_KEYS = {
    "server_name": TEXT,
    "verify_keys": {"ed25519:" + TEXT: {"key": TEXT}},
    "signatures": TEXT,
    "valid_until_ts": 10**400,
}
NOT_ROUTED = "http_error/signed_not_routed"

# Answered with 200, and by no homeserver that has taken anything.
site(
    "send-odd failing http_error/homeserver_fails",
    send=as_json({"errcode": "M_UNKNOWN", "error": "?"}),
)
site("send-catch-all failing http_error/odd_status", send=as_json({"status": "ok"}))
site("send-nothing ok", send=as_json({}))
site("shut-out failing not_allowed")
site("rejects failing rejected", send=UNAUTHORIZED)
site("shuts-us-out failing rejected", send=FORBIDDEN_BY_MATRIX)
# It may be waiting for our key.
site("send-hangs failing response_timeout/signed_unanswered", send=hang)
site("keys-limited failing rate_limited/keys_request", keys=LIMITED)
site("keys-close failing keys_missing/closed", keys=close)
site("send-500 failing http_error/web_server_fails", "only /_matrix", send=SERVER_ERROR)
site(f"send-html failing {NOT_ROUTED}", send=PAGE_NOT_FOUND)
site("send-limited failing rate_limited", send=LIMITED)
site(f"send-unknown failing {NOT_ROUTED}", send=UNRECOGNIZED)
site(
    "send-error failing http_error/homeserver_fails",
    "HTTP 500 M_UNKNOWN",
    send=as_json({"errcode": "M_UNKNOWN"}, status="500 No"),
)
site("no-version degraded http_error/version_only", version=http("404 Not Found"))
site("version-shut degraded rejected/forbidden_by_proxy", version=FORBIDDEN)
# Clocks.
site(
    "fast-clock degraded other/clock",
    "ahead of ours",
    version=version(time.time() + 7200),
)
site(
    "slow-clock-rejects failing rejected/clock",
    "behind ours",
    version=version(time.time() - 7200),
    send=UNAUTHORIZED,
)
# Hostile servers.
site("hostile-version ok", version=as_json({"server": {"name": TEXT, "version": TEXT}}))
site(
    "hostile-type degraded invalid_response/wrong_content_type",
    version=http("200 OK", b"{}", b"Content-Type: %s\r\n" % ESC),
)
site(
    "folded-type failing keys_invalid/wrong_content_type",
    keys=http("200 OK", b"{}", FOLDED),
)
site(
    "other-encoding failing invalid_response",
    send=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
)
site(
    "garbage-status failing invalid_response",
    send=b"\x1b[31m\x07" + b"g" * 20_000 + b"\r\n\r\n",
)
site(
    "hostile-errcode failing rejected",
    send=as_json({"errcode": TEXT, "error": TEXT}, status="401 " + "y" * 5000),
)
site(
    "hostile-status failing http_error",
    send=b"HTTP/1.1 500 %sz\r\nContent-Length: 0\r\n\r\n" % (ESC * 900),
)
site("hostile-keys failing keys_invalid/other_server_name", keys=as_json(HOSTILE_KEYS))
site("deep-keys failing keys_invalid/not_json", keys=DEEP_LIST)
site("deep-version degraded invalid_response/not_json", version=DEEP_LIST)
site("endless-body degraded invalid_response/body_too_large", version=ENDLESS_LIST)
site(
    "endless-headers degraded response_timeout/endless",
    version=repeat(b"X-A: " + b"x" * 4096 + b"\r\n", BEGUN),
)
site(
    "endless-keys failing keys_invalid/body_too_large",
    "(more than 256 KiB): it is not read",
    keys=ENDLESS_LIST,
)
for label, header in ("plain", b"A: b"), ("chunked", b"Transfer-Encoding: chunked"):
    begun = BEGUN + b"Content-Type: application/json\r\n%s\r\n\r\n" % header
    site(
        f"send-endless-{label} failing invalid_response/body_too_large",
        "(more than 256 KiB): it is not read",
        send=repeat(b"1000\r\n" + b" " * 4096 + b"\r\n", begun),
    )
site(
    "slow-version degraded response_timeout",
    version=repeat(b"x", BEGUN_LIST, every_s=1),
)
site(
    "slow-send failing response_timeout",
    send=repeat(b"x", b"HTTP/1.1 404 N\r\nX: ", every_s=1),
)


# Keys.


def keys(**changes: object) -> Callable[[str], bytes]:
    """Return what makes an answer whose signature is right, but for what is wrong."""

    def make(name: str) -> bytes:
        identity = Identity(str(changes.get("server_name", name)))
        content = identity.server_keys()
        del content["signatures"]
        return as_json(identity.signed({**content, **changes}))

    return make


def broken_signature(name: str) -> bytes:
    content = Identity(name).server_keys()
    content["valid_until_ts"] += 1
    return as_json(content)


def unsigned(name: str) -> bytes:
    content = Identity(name).server_keys()
    del content["signatures"]
    return as_json(content)


def second_unreadable(name: str) -> bytes:
    good = Identity(name).server_keys()["verify_keys"]
    return keys(verify_keys={**good, "ed25519:z": {"key": "AAAA"}})(name)


YESTERDAY = int(time.time() * 1000) - 86_400_000
MISSING, UNREADABLE = "keys_missing", "keys_invalid/key_unreadable"

# It is not us whom they reject.
site(f"keys-403 failing {MISSING}", "HTTP 403", keys=FORBIDDEN)
site(
    f"keys-odd failing {MISSING}/no_ed25519_key",
    make_keys=keys(verify_keys={"rsa:1": {}}),
)
site(
    "keys-signature failing keys_invalid/signature_invalid", make_keys=broken_signature
)
site("keys-unsigned failing keys_invalid/not_signed", make_keys=unsigned)
site(
    "keys-of-another failing keys_invalid/other_server_name",
    "other.example",
    make_keys=keys(server_name="other.example"),
)
site(
    "keys-no-date failing keys_invalid/valid_until_missing",
    make_keys=keys(valid_until_ts="soon"),
)
site("keys-a-list failing keys_invalid/not_json", keys=as_json([]))
site("keys-expired failing keys_expired", make_keys=keys(valid_until_ts=YESTERDAY))
# Of these Synapse takes none, for it cannot read one.
site(
    f"old-key-bad failing {UNREADABLE}",
    make_keys=keys(old_verify_keys={"ed25519:o": {"key": "A"}}),
)
site(
    "old-keys-a-list failing keys_invalid/old_keys_not_an_object",
    make_keys=keys(old_verify_keys=[1]),
)
site(f"second-key-bad failing {UNREADABLE}", make_keys=second_unreadable)


# All is answered but what real traffic is made of.

BUSY = {"errcode": "M_UNKNOWN", "error": "Too many concurrent transactions"}
for line, answer in {
    "204 invalid_response/wrong_content_type": http("204 No", b"", b""),
    "304 http_error/odd_status": http("304 No", b"", b""),
    "403 rejected/forbidden_by_proxy": http("403 No", b"<html>", NGINX),
    "502 http_error/backend_down": http("502 No", b"<html>", NGINX),
    "broken invalid_response/not_json": http("200 OK", b"{"),
    "closes invalid_response/closed": b"",
    "page invalid_response/wrong_content_type": http("200 OK", b"<html>", NGINX),
    "redirect http_error/redirect": redirect(b"https://elsewhere.example/"),
}.items():
    site(f"send-{line.replace(' ', ' failing ')}", "only /_matrix", send=answer)
site("send-410 failing gone/signed_not_routed", send=http("410 Gone", b""))
site("send-413 failing too_large/empty_too_large", send=http("413 No", b"", HTML))
site(
    "send-headers-endless failing response_timeout/endless",
    "more than 256 KiB before any answer",
    send=repeat(b"X-A: " + b"x" * 4096 + b"\r\n", b"HTTP/1.1 200 OK\r\n"),
)
# Its answer of 200 begins.
site(
    "send-body-endless failing response_timeout/signed_unanswered",
    send=repeat(b" ", BEGUN_LIST, every_s=1),
)
# So others than Synapse reject what is signed, and Synapse where it gets no key.
for label, code, errcode, text in (
    (
        "signature_rejected",
        "403",
        "M_FORBIDDEN",
        "Failed to verify X-Matrix signatures.",
    ),
    ("other_homeserver", "403", "M_FORBIDDEN", "Invalid destination."),
    ("signature_removed", "401", "M_UNAUTHORIZED", "Missing Authorization headers"),
    ("our_key_not_fetched", "401", "M_UNAUTHORIZED", "Failed to find any key to sa"),
):
    site(
        f"{label.replace('_', '-')} failing rejected/{label}",
        f"HTTP {code} {errcode} {text}",
        send=as_json({"errcode": errcode, "error": text}, status=f"{code} No"),
    )
site("send-busy ok", "still busy", send=as_json(BUSY, status="429 No"))

site("keys-404 failing keys_missing", keys=http("404 Not Found", b"<html>", HTML))
site(
    "keys-and-send failing too_large",
    "No signing keys",
    keys=http("404 Not Found", b"<html>", HTML),
    send=http("413 No", b"", HTML),
)
