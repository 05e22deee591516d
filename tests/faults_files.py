# SPDX-License-Identifier: Apache-2.0
"""The catalogue of faults: the well-known file."""

import ssl

from faults import (
    BEGUN,
    ESC,
    PAGE,
    TEXT,
    at,
    delegates,
    fault,
    m_server,
    placed,
    redirect,
    silent_web,
    site,
    slowly,
    srv,
    there,
    up,
    way,
    web,
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
# Nor does Synapse then send anything, wherever it leads.
NO_DATE = as_json({"m.server": f"expires-empty.{ZONE}:8448"}, b"Expires:\r\n")
site(f"expires-empty failing {INVALID}/expires_empty", file=NO_DATE)
site(f"hanging-file failing {UNREACHABLE}", file=hang)
# A web site that answers with a page, whatever it is asked for.
site("web-page ok", file=PAGE)
site(
    f"web-page-only failing {INVALID}/web_page",
    "(127.",
    file=PAGE,
    is_up=False,
)


# Two facts: the file cannot be fetched, and port 8448 is closed.
way(
    f"web-expired failing {UNREACHABLE}/web_certificate",
    web({WELL_KNOWN: m_server("a")}, certify=expired),
    says="expired 3 d ago",
)
way(f"expired-file failing {UNREACHABLE}", web({}, certify=expired))
# What it means is there.
for label, to in (
    ("path", "other-{}/matrix"),
    ("url", "https://other-{}"),
    ("slash", "other-{}/"),
):
    line = f"{label}-of-another failing {INVALID}/m_server_invalid"
    way(line, delegates(to), at("other-{}"))
# A web site of the same name whose certificate is not for it.
way("web-certificate ok", up, web({}, "other.example"))
# Two facts again; it may be that the server is down.
way(
    "file-hole failing connection_refused",
    silent_web,
    says="no answer from file-hole.lab.example",
)
way(f"dropped-file degraded {UNREACHABLE}", up, silent_web)
# Who has SRV records has no need of the file.
way("web-page-and-srv failing connection_refused", delegates(PAGE), srv("{}"))
# A homeserver at port 443 to which nothing leads.
way(
    "no-file failing connection_refused/may_lack_delegation",
    at("{}", 443),
    says="is not served: HTTP 404",
)
# Synapse waits for it, and so does the diagnosis.
SLOWLY = slowly(m_server(f"slower-file.{ZONE}:8448"), 2)
way("slower-file ok", up, delegates(SLOWLY))
# SRV records, here of a server that is up, do not count beside delegation.
way("delegated-refused failing connection_refused", up, delegates("{}:9"), srv("{}"))


@fault("delegated-wrong-name failing tls_wrong_name")
def _(lab: Laboratory, name: str) -> None:
    """The certificate has to be for the delegated name."""
    up(lab, name)
    delegates(f"other-name.{ZONE}:8448")(lab, name)
    placed(lab, f"other-name.{ZONE}", there(lab, name))


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

    up(lab, name)
    delegates(answer)(lab, name)


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


way(f"endless-redirects degraded {UNREACHABLE}", up, web(redirect(b"/x" + b"x" * 2000)))
site("file-forbidden ok", file=http("403 Forbidden", b"<html>", HTML))
site(
    "file-204 degraded well_known_unreachable/no_file_in_it",
    "their web server answers HTTP 204",
    file=http("204 No", b"", b""),
)
