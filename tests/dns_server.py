# SPDX-License-Identifier: Apache-2.0
"""A DNS server of the tests' own, right or wrong as they say."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import dnslib
from dnslib import QTYPE, RCODE, RR, DNSRecord
from listener import Listener

# What a name may have in place of records.
SERVFAIL = "SERVFAIL"
SILENCE = "silence"

_MAX_UDP = 512


@contextmanager
def silent(address: str) -> Iterator[None]:
    """Have a name server that takes every query and answers none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taking:
        taking.bind((address, 53))
        yield


class DnsServer:
    """Answers over UDP and TCP at port 53 of an address, from a table.

    `records` has by (name, type) a list of values, SERVFAIL or SILENCE; a name that has
    none of any type does not exist.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.records: dict[tuple[str, str], Any] = {}
        self.delay_s = 0.0
        # What every name has that has none of the type that is asked for.
        self.default: Any = []
        # The names in all questions that came.
        self.asked: list[str] = []
        self._prepared: dict[tuple[str, str], bytes] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "DnsServer":
        with ExitStack() as stack:
            stack.enter_context(Listener(self.address, 53, self._answer_tcp))
            self._udp = stack.enter_context(
                socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            )
            # Whoever asks is answered, also where this process has much to do.
            self._udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
            self._udp.bind((self.address, 53))
            self._is_over = False
            thread = threading.Thread(target=self._serve_udp, daemon=True)
            thread.start()
            stack.callback(thread.join)
            stack.callback(self._end_udp)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _end_udp(self) -> None:
        self._is_over = True
        # It is not connected, so this is an error; all the same it wakes who receives.
        with suppress(OSError):
            self._udp.shutdown(socket.SHUT_RDWR)

    def add(self, name: str, kind: str, *values: Any) -> None:
        self.records.setdefault((name, kind), []).extend(values)

    def ignore(self, *names: str) -> None:
        """Answer nothing of what is asked to find a server by its name."""
        for name in names:
            for service in ("", "_matrix-fed._tcp.", "_matrix._tcp."):
                for kind in ("A", "AAAA", "SRV"):
                    self.records[service + name, kind] = SILENCE

    def _serve_udp(self) -> None:
        while True:
            data, peer = self._udp.recvfrom(4096)
            if self._is_over:
                return
            if not self.delay_s:
                # Without a thread of its own, for which others would have to wait.
                self._answer_udp(data, peer)
                continue
            timer = threading.Timer(self.delay_s, self._answer_udp, (data, peer))
            timer.daemon = True
            timer.start()

    def _answer_udp(self, data: bytes, peer: Any) -> None:
        packed = self._packed(data)
        if packed is None:
            return
        if len(packed) > _MAX_UDP:
            reply = DNSRecord.parse(data).reply()
            reply.header.tc = 1
            packed = reply.pack()
        with suppress(OSError):
            self._udp.sendto(packed, peer)

    def _answer_tcp(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as stream:
            while length := stream.read(2):
                packed = self._packed(stream.read(int.from_bytes(length, "big")))
                if packed is not None:
                    connection.sendall(len(packed).to_bytes(2, "big") + packed)

    def prepare(self, name: str, kind: str) -> None:
        """Make an answer that is large beforehand: that takes long."""
        packed = self._packed(DNSRecord.question(name, kind).pack())
        assert packed is not None
        self._prepared[name, kind] = packed[2:]

    def _packed(self, data: bytes) -> bytes | None:
        question = DNSRecord.parse(data).q
        name = str(question.qname).rstrip(".").lower()
        self.asked.append(name)
        prepared = self._prepared.get((name, QTYPE[question.qtype]))
        if prepared is not None:
            return data[:2] + prepared
        reply = self._reply(data)
        return None if reply is None else reply.pack()

    def _reply(self, data: bytes) -> DNSRecord | None:
        request = DNSRecord.parse(data)
        reply = request.reply()
        name = str(request.q.qname).rstrip(".").lower()
        kind = QTYPE[request.q.qtype]
        values = self.records.get((name, kind), self.default)
        if values == SILENCE:
            return None
        if values == SERVFAIL:
            reply.header.rcode = RCODE.SERVFAIL
            return reply
        for alias in self.records.get((name, "CNAME"), []) if kind != "CNAME" else []:
            # As a resolver does it: with what the alias leads to.
            rdata = dnslib.CNAME(alias)
            reply.add_answer(RR(request.q.qname, QTYPE.CNAME, rdata=rdata, ttl=60))
            name = alias
            values = self.records.get((name, kind), [])
        if not any(known == name for known, _ in self.records):
            reply.header.rcode = RCODE.NXDOMAIN
        rdata = getattr(dnslib, kind, None)
        for value in values:
            arguments = value if isinstance(value, tuple) else (value,)
            reply.add_answer(RR(name, request.q.qtype, rdata=rdata(*arguments), ttl=60))
        return reply
