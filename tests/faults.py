# SPDX-License-Identifier: Apache-2.0
"""How a fault is described: what a server does wrong, and what that is to be called.

The catalogue itself is in the files of which `catalogue` has a list; each of them adds
to it when it is imported.
"""

import ssl
from collections.abc import Callable
from typing import Any

import attr
from laboratory import HTML, WELL_KNOWN, Answer, Laboratory, as_json, homeserver, http

BLOCKED = "127.9.0.1"

BAD_GATEWAY = http("502 Bad Gateway", b"<html>", HTML)
PAGE = http("200 OK", b"<html>", HTML)
PAGE_NOT_FOUND = http("404 Not Found", b"<html>", HTML)

# Hostile to whoever writes it to a log, or shows it.
ESC = b"\x1b[31m\xff\r\t"
TEXT = "\u001b[31m\n2026 forged\u2028" + "x" * 20_000

BEGUN = b"HTTP/1.1 200 OK\r\n"
BEGUN_LIST = BEGUN + b"Content-Type: application/json\r\n\r\n["

Build = Callable[[Laboratory, str], str | None]
Certify = Callable[[Laboratory, str], ssl.SSLContext]


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Fault:
    """A fault.

    Attributes:
        label: The first label of its server name.
        verdict: What is to be found.
        kind: How it is to be called: `kind`, or `kind/reason` where that does not
            depend on how quick this machine is.
        build: Makes the server; returns its name if that is another one.
        says: A fact that the explanation has to tell.
    """

    label: str
    verdict: str
    kind: str | None
    build: Build
    says: str = ""

    def fits(self, kind: str | None, reason: str | None) -> bool:
        """Tell whether it is called as it is to be."""
        return self.kind in (kind, f"{kind}/{reason}")


CATALOGUE: list[Fault] = []


def fault(line: str, says: str = "") -> Callable[[Build], Build]:
    """Add a fault to the catalogue: `label verdict`, and `kind` or `kind/reason`."""
    label, verdict, *kind = line.split()

    def add(build: Build) -> Build:
        CATALOGUE.append(Fault(label, verdict, kind[0] if kind else None, build, says))
        return build

    return add


def placed(lab: Laboratory, name: str, address: str = "") -> str:
    """Give a name an address more: a new one, or a given one."""
    address = address or lab.address()
    lab.dns.add(name, "A", address)
    return address


def up(lab: Laboratory, name: str, **answers: Answer) -> str:
    """Have a homeserver in order, but for some answers, at port 8448."""
    address = placed(lab, name)
    lab.serve(address, 8448, homeserver(name, **answers), name)
    return address


def serving(line: str, answer: Answer, *, plain: bool = False) -> None:
    """Add one that answers the same to everything at port 8448, with TLS or without."""

    @fault(line)
    def _(lab: Laboratory, name: str) -> None:
        lab.serve(placed(lab, name), 8448, answer, name, plain=plain)


def named(line: str, given: str) -> None:
    """Add a name to which nothing is sent."""
    fault(line)(lambda _, __: given)


def srv(lab: Laboratory, name: str, *hosts: Any, port: int = 8448) -> None:
    """Give a name SRV records; the first host is used first."""
    records = [(number, 0, port, host) for number, host in enumerate(hosts)]
    lab.dns.add(f"_matrix-fed._tcp.{name}", "SRV", *records)


def by_srv(line: str, *, service: str = "_matrix-fed", certified: str = "") -> None:
    """Add one to which SRV records lead, at another host."""

    @fault(line)
    def _(lab: Laboratory, name: str) -> None:
        host = f"target-{name}"
        lab.dns.add(f"{service}._tcp.{name}", "SRV", (0, 0, 10448, host))
        answers = homeserver(name)
        lab.serve(placed(lab, host), 10448, answers, certified or name)


def delegates(lab: Laboratory, name: str, file: Answer, address: str = "") -> str:
    """Serve a well-known file at port 443, of a given address or a new one."""
    address = address or placed(lab, name)
    lab.serve(address, 443, {WELL_KNOWN: file}, name)
    return address


def site(
    line: str,
    says: str = "",
    *,
    file: Answer | None = None,
    is_up: bool = True,
    certify: Certify | None = None,
    make_keys: Callable[[str], bytes] | None = None,
    **answers: Answer,
) -> None:
    """Add a server that is in order but for what is given.

    Args:
        line: As of `fault`.
        says: As of a fault.
        file: Its well-known file; by default nothing listens there.
        is_up: Whether a homeserver answers at port 8448.
        certify: Makes its certificate for its name.
        make_keys: Makes its keys for its name.
        answers: Other answers of it.
    """

    @fault(line, says)
    def _(lab: Laboratory, name: str) -> None:
        address = placed(lab, name)
        if is_up:
            made = certify(lab, name) if certify else None
            given = {**answers, **({"keys": make_keys(name)} if make_keys else {})}
            answering = homeserver(name, **given)
            lab.serve(address, 8448, answering, name, context=made)
        if file is not None:
            delegates(lab, name, file, address)


def m_server(to: object) -> bytes:
    return as_json({"m.server": to})


def redirect(to: bytes) -> bytes:
    return http("302 Found", b"", b"Location: " + to + b"\r\n")
