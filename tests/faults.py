# SPDX-License-Identifier: Apache-2.0
"""How a fault is described: what a server does wrong, and what that is to be called.

The catalogue itself is in the files of which `catalogue` has a list; each of them adds
to it when it is imported.
"""

import ssl
import time
from collections.abc import Callable
from typing import Any

import attr
from laboratory import (
    HTML,
    WELL_KNOWN,
    Answer,
    Answers,
    Laboratory,
    as_json,
    homeserver,
    http,
)

from synapse_federation_admin.failures.kinds import FailureKind, Reason

BLOCKED = "127.9.0.1"

# How long an advice may be.
ADVICE = 240

BAD_GATEWAY = http("502 Bad Gateway", b"<html>", HTML)
PAGE = http("200 OK", b"<html>", HTML)
PAGE_NOT_FOUND = http("404 Not Found", b"<html>", HTML)

# Hostile to whoever writes it to a log, or shows it.
ESC = b"\x1b[31m\xff\r\t"
TEXT = "\u001b[31m\n2026 forged\u2028" + "x" * 20_000

BEGUN = b"HTTP/1.1 200 OK\r\n"
BEGUN_LIST = BEGUN + b"Content-Type: application/json\r\n\r\n["

Build = Callable[[Laboratory, str], str | None]
Part = Callable[[Laboratory, str], object]
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


def told_as(kind: str, text: str) -> bool:
    """Tell whether a text has the term of a kind, or of what is below one."""
    terms = [k.headline for k in FailureKind if k.value == kind]
    terms += [reason.headline for reason in Reason if reason.headline]
    return any(term in text for term in terms)


def placed(lab: Laboratory, host: str, address: str = "") -> str:
    """Give a host an address more: a new one, or a given one."""
    address = address or lab.address()
    lab.dns.add(host, "A", address)
    return address


def there(lab: Laboratory, name: str) -> str:
    """Return the address that a name was given last, or else a new one."""
    known = lab.dns.records.get((name, "A"))
    return known[-1] if known else placed(lab, name)


def way(line: str, *parts: Part, says: str = "") -> None:
    """Add a fault that is made of parts: `{}` in what they are given is its name."""

    @fault(line, says)
    def _(lab: Laboratory, name: str) -> None:
        for part in parts:
            part(lab, name)


def at(
    host: str = "{}",
    port: int = 8448,
    certified: str = "",
    certify: Certify | None = None,
) -> Part:
    """Have a homeserver in order at a new address of a host.

    Args:
        host: The host.
        port: Where it listens.
        certified: Whom its certificate is for; by default the host.
        certify: Makes another certificate.
    """

    def part(lab: Laboratory, name: str) -> None:
        known, made = host.format(name), certify(lab, name) if certify else None
        names = (certified or known).format(name)
        lab.serve(placed(lab, known), port, homeserver(name), names, context=made)

    return part


up = at()


def answering(answer: Answer, *, plain: bool = False) -> Part:
    """Answer the same to everything at port 8448, with TLS or without."""

    def part(lab: Laboratory, name: str) -> None:
        lab.serve(placed(lab, name), 8448, answer, name, plain=plain)

    return part


def serving(line: str, answer: Answer, *, plain: bool = False) -> None:
    """Add one that answers the same to everything."""
    way(line, answering(answer, plain=plain))


def web(
    answers: Answers | Answer, certified: str = "{}", certify: Certify | None = None
) -> Part:
    """Have a web server where the name is."""

    def part(lab: Laboratory, name: str) -> None:
        made = certify(lab, name) if certify else None
        lab.serve(there(lab, name), 443, answers, certified.format(name), context=made)

    return part


def delegates(file: Answer | str) -> Part:
    """Have a well-known file where the name is, or one with what it delegates to."""

    def part(lab: Laboratory, name: str) -> None:
        answer = m_server(file.format(name)) if isinstance(file, str) else file
        web({WELL_KNOWN: answer})(lab, name)

    return part


def silent_web(lab: Laboratory, name: str) -> None:
    """Have port 443 not react where the name is."""
    lab.hole(there(lab, name), 443)


def hole(host: str = "{}") -> Part:
    """Give a host an address at which port 8448 does not react."""
    return lambda lab, name: placed(lab, host.format(name), lab.hole())


def nobody(host: str = "{}", address: str = "") -> Part:
    """Give a host an address where nobody listens."""
    return lambda lab, name: placed(lab, host.format(name), address)


def record(kind: str, value: str, of: str = "{}") -> Part:
    """Have a record in the DNS."""
    return lambda lab, name: lab.dns.add(of.format(name), kind, value.format(name))


def unanswered(said: str, *kinds: str, of: str = "{}") -> Part:
    """Have no answer, or an error, to questions about a host."""
    return lambda lab, name: lab.dns.records.update(
        {(of.format(name), kind): said for kind in kinds}
    )


def srv(
    *hosts: Any, port: int = 8448, of: str = "{}", service: str = "_matrix-fed"
) -> Part:
    """Have SRV records; the first host is used first."""

    def part(lab: Laboratory, name: str) -> None:
        targets = [h.format(name) if isinstance(h, str) else h for h in hosts]
        records = [(number, 0, port, target) for number, target in enumerate(targets)]
        lab.dns.add(f"{service}._tcp.{of.format(name)}", "SRV", *records)

    return part


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
            delegates(file)(lab, name)


def m_server(to: object) -> bytes:
    return as_json({"m.server": to})


def redirect(to: bytes) -> bytes:
    return http("302 Found", b"", b"Location: " + to + b"\r\n")


def slowly(answer: bytes, seconds: float) -> Answer:
    """Return what gives an answer after a time."""

    def give(connection: ssl.SSLSocket) -> None:
        time.sleep(seconds)
        connection.sendall(answer)

    return give
