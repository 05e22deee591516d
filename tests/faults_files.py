# SPDX-License-Identifier: Apache-2.0
"""The catalogue of faults: the well-known file."""

import ssl
import time

from faults import (
    BEGUN,
    ESC,
    PAGE,
    TEXT,
    delegates,
    fault,
    m_server,
    placed,
    redirect,
    site,
    srv,
    up,
)
from faults_tls import expired
from laboratory import (
    HTML,
    WELL_KNOWN,
    ZONE,
    Answer,
    Laboratory,
    as_json,
    close,
    hang,
    homeserver,
    http,
    repeat,
)

NO_CONTENT = http("502 Bad Gateway", b"")

INVALID, UNREACHABLE = "well_known_invalid", "well_known_unreachable"
FILES: dict[str, Answer] = {
    f"no-json {INVALID}/not_json": http("200 OK", b"{"),
    f"byte-order-mark {INVALID}/byte_order_mark": http(
        "200 OK", b'\xef\xbb\xbf{"m.server": "nosuch.example:8448"}'
    ),
    f"utf-16 {INVALID}/utf_16": http(
        "200 OK", '{"m.server": "nosuch.example:8448"}'.encode("utf-16")
    ),
    f"empty-file {INVALID}/body_empty": http("200 OK", b""),
    f"empty-name {INVALID}/m_server_empty": m_server(""),
    f"no-m-server {INVALID}/m_server_missing": as_json({"server": "a"}),
    f"number {INVALID}/m_server_not_a_string": m_server(8448),
    f"umlaut {INVALID}/m_server_invalid": m_server("m\u00fcller.example"),
    f"large-file {INVALID}/body_too_large": m_server("x" * 60_000),
    f"bad-gateway {UNREACHABLE}": NO_CONTENT,
    f"redirect-away {UNREACHABLE}": redirect(b"https://nosuch.example/"),
    f"redirect-loop {UNREACHABLE}": redirect(WELL_KNOWN.encode()),
    f"redirect-nowhere {UNREACHABLE}/redirect_without_target": http("302 Found", b""),
    f"file-closes {UNREACHABLE}/web_no_answer": close,
}
for line, file in FILES.items():
    label, kind = line.split()
    site(f"{label} failing {kind}", file=file, is_up=False)
    if label in ("no-json", "bad-gateway"):
        site(f"{label}-works degraded {kind}", file=file)

# These are used as they are, or waited for.
site(f"url failing {INVALID}", file=m_server("https://a.example"))
site(f"path failing {INVALID}", file=m_server("a.example/b"))
# Also if Synapse does not cache it.
UNCACHED = as_json({"m.server": "https://a.example/"}, b"Cache-Control: no-store\r\n")
site(f"url-uncached failing {INVALID}", file=UNCACHED)
site(f"hanging-file failing {UNREACHABLE}", file=hang)
# A web site that answers with a page, whatever it is asked for.
site("web-page ok", file=PAGE)
site(
    f"web-page-only failing {INVALID}/web_page",
    "(127.",
    file=PAGE,
    is_up=False,
)


@fault(f"web-expired failing {UNREACHABLE}/web_certificate", "expired 3 d ago")
def _(lab: Laboratory, name: str) -> None:
    """Two facts: the file cannot be fetched, and port 8448 is closed."""
    made = expired(lab, name)
    lab.serve(placed(lab, name), 443, {WELL_KNOWN: m_server("a")}, context=made)


for label, to in (("path", "{}/matrix"), ("url", "https://{}"), ("slash", "{}/")):

    @fault(f"{label}-of-another failing {INVALID}/m_server_invalid")
    def _(lab: Laboratory, name: str, to: str = to) -> None:
        """What it means is there."""
        host = f"other-{name}"
        delegates(lab, name, m_server(to.format(host)))
        lab.serve(placed(lab, host), 8448, homeserver(name), host)


@fault("web-certificate ok")
def _(lab: Laboratory, name: str) -> None:
    """A web site of the same name whose certificate is not for it."""
    lab.serve(up(lab, name), 443, {}, "other.example")


@fault("file-hole failing connection_refused", "no answer from file-hole.lab.example")
def _(lab: Laboratory, name: str) -> None:
    """Two facts again; it may be that the server is down."""
    lab.hole(placed(lab, name), 443)


@fault("web-page-and-srv failing connection_refused")
def _(lab: Laboratory, name: str) -> None:
    """Who has SRV records has no need of the file."""
    delegates(lab, name, PAGE)
    srv(lab, name, name)


@fault(
    "no-file failing connection_refused/may_lack_delegation",
    "is not served: HTTP 404",
)
def _(lab: Laboratory, name: str) -> None:
    """A homeserver at port 443 to which nothing leads."""
    lab.serve(placed(lab, name), 443, homeserver(name), name)


@fault(f"dropped-file degraded {UNREACHABLE}")
def _(lab: Laboratory, name: str) -> None:
    lab.hole(up(lab, name), 443)


@fault("slower-file ok")
def _(lab: Laboratory, name: str) -> None:
    """Synapse waits for it, and so does the diagnosis."""

    def answer(connection: ssl.SSLSocket) -> None:
        time.sleep(2)
        connection.sendall(m_server(f"{name}:8448"))

    delegates(lab, name, answer, up(lab, name))


@fault(f"expired-file failing {UNREACHABLE}")
def _(lab: Laboratory, name: str) -> None:
    lab.serve(placed(lab, name), 443, {}, context=expired(lab, name))


@fault("delegated-refused failing connection_refused")
def _(lab: Laboratory, name: str) -> None:
    """SRV records, here of a server that is up, do not count beside delegation."""
    delegates(lab, name, m_server(f"{name}:9"), up(lab, name))
    srv(lab, name, name)


@fault("delegated-wrong-name failing tls_wrong_name")
def _(lab: Laboratory, name: str) -> None:
    """The certificate has to be for the delegated name."""
    other = f"other-name.{ZONE}"
    delegates(lab, name, m_server(f"{other}:8448"), up(lab, name))
    placed(lab, other, lab.dns.records[name, "A"][0])


@fault(f"late-hostile-file failing {UNREACHABLE}")
def _(lab: Laboratory, name: str) -> None:
    """The file hangs at first, and then is hostile to whoever logs it."""
    asked: list[int] = []

    def answer(connection: ssl.SSLSocket) -> None:
        asked.append(1)
        if len(asked) == 1:
            hang(connection)
        else:
            connection.sendall(as_json({"m.server": "x" * 300, "x": TEXT, "\xfc": 1}))

    delegates(lab, name, answer, up(lab, name))


site(
    f"hostile-file failing {INVALID}/m_server_invalid",
    file=m_server("\u001b[31mx" + "y" * 9000),
)
site(
    f"hostile-location degraded {UNREACHABLE}/redirect_invalid",
    file=redirect(ESC[:6] + b"z" * 9000),
)
site(
    f"endless-file degraded {INVALID}/body_too_large",
    file=repeat(b"x" * 1000, BEGUN + b"\r\n"),
)
site(
    f"slow-file failing {UNREACHABLE}",
    file=repeat(b"x", BEGUN + b"\r\n", every_s=1),
)


@fault(f"endless-redirects degraded {UNREACHABLE}")
def _(lab: Laboratory, name: str) -> None:
    lab.serve(up(lab, name), 443, redirect(b"/x" + b"x" * 2000), name)


site("file-forbidden ok", file=http("403 Forbidden", b"<html>", HTML))
site(
    "file-204 degraded well_known_unreachable/no_file_in_it",
    "their web server answers HTTP 204",
    file=http("204 No", b"", b""),
)
