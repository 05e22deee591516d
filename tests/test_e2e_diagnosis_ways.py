# SPDX-License-Identifier: Apache-2.0
"""What a diagnosis shows of the way, and of what this homeserver itself does on it."""

import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any

import attr
import pytest
from deadlines import AT_ONCE_S, SOON_S
from dns_server import DnsServer
from faults import m_server, told_as
from faults_tls import expired
from fleet import select, write_failing
from laboratory import (
    SEND,
    WELL_KNOWN,
    ZONE,
    Answer,
    Laboratory,
    Server,
    hang,
    homeserver,
)
from listener import Listener
from own_resolver import with_resolver
from real_synapse import Admin, RealSynapse

from synapse_federation_admin.playground.client import ApiError
from synapse_federation_admin.playground.processes import free_port, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.root]

TIMEOUT_S = 3


@attr.s(slots=True, auto_attribs=True)
class World:
    laboratory: Laboratory
    synapse: RealSynapse
    client: Admin

    def named(self, label: str) -> tuple[str, str]:
        """Return a name, and its address."""
        address = self.laboratory.address()
        return self.laboratory.name(label, address), address

    def up(self, label: str, **answers: Answer) -> tuple[str, Server]:
        """Return the name of a homeserver in order, but for some answers, and it."""
        name, address = self.named(label)
        answering = homeserver(name, **answers)
        return name, self.laboratory.serve(address, 8448, answering, name)

    def diagnose(self, name: str) -> dict[str, Any]:
        """Return a report, whose stages are by name, with their findings in them."""
        report = self.client.diagnose(name)
        report["stages"] = {
            stage["name"]: {**stage, **(stage["findings"] or {})}
            for stage in report["stages"]
        }
        return report


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("ways")
    with Laboratory(folder) as laboratory, start(laboratory, "synapse") as synapse:
        yield World(laboratory, synapse, synapse.as_admin())


def start(laboratory: Laboratory, name: str, **kwargs: Any) -> RealSynapse:
    config = {
        "federation_ip_range_blacklist": [],
        "federation_certificate_verification_whitelist": [
            f"unverified.{ZONE}",
            f"pointing.{ZONE}",
        ],
    }
    return RealSynapse(
        laboratory.folder / name,
        laboratory.certificates,
        module_config={"diagnosis": {"timeout": f"{TIMEOUT_S}s"}},
        extra_config={**config, **kwargs.pop("extra_config", {})},
        wrapper=kwargs.pop("wrapper", laboratory.wrapper),
        **kwargs,
    )


def test_what_is_sent(world: World) -> None:
    """`Host`, SNI and certificate are of the delegated name, not of an SRV target."""
    laboratory = world.laboratory
    name, delegated = f"sent.{ZONE}", f"delegated.{ZONE}"
    web, address = laboratory.address(), laboratory.address()
    laboratory.name("sent", web)
    laboratory.serve(web, 443, {WELL_KNOWN: m_server(delegated)}, name)
    laboratory.dns.add(
        f"_matrix-fed._tcp.{delegated}", "SRV", (1, 2, 10448, f"target.{ZONE}")
    )
    laboratory.name("target", address)
    server = laboratory.serve(address, 10448, homeserver(name), delegated)
    report = world.diagnose(name)
    assert report["verdict"] == "ok", report
    assert {host for _, host in server.requests} == {delegated}
    assert set(server.names) == {delegated}
    stages = report["stages"]
    assert stages["well_known"]["delegated_to"] == delegated
    assert stages["well_known"]["lifetime_ms"] == 86_400_000
    (request,) = stages["well_known"]["requests"]
    assert request["url"] == f"https://{name}/.well-known/matrix/server"
    assert request["content_type"] == "application/json"
    assert request["size_bytes"] == len('{"m.server": ""}') + len(delegated)
    assert stages["addresses"]["step"] == "3.3"
    (service,) = stages["addresses"]["services"]
    assert (service["priority"], service["weight"]) == (1, 2)
    assert (service["target"], service["port"]) == (f"target.{ZONE}", 10448)
    (connection,) = stages["connections"]["connections"]
    assert connection["address"] == address
    assert connection["host_header"] == connection["sni"] == delegated
    tls = connection["tls"]
    assert tls["version"] == "TLSv1.3"
    assert (tls["is_trusted"], tls["name_matches"]) == (True, True)
    assert tls["is_verified"] is True
    certificate = tls["certificate"]
    assert certificate["names"] == [delegated]
    assert certificate["days_left"] > 30
    assert len(certificate["sha256"]) == 64
    assert stages["version"]["server_name"] == "lab"
    assert stages["version"]["server_version"] == "1.2"
    (key,) = stages["keys"]["keys"]
    assert key["is_self_signed"]
    assert key["stored"] is None
    assert stages["authenticated"]["status"] == 200
    assert f"{stages['authenticated']['path']}/" == SEND
    assert stages["clock"]["outcome"] == "skipped"
    assert stages["stored"]["is_known"] is False
    assert report["stored"] == stages["stored"]["findings"]


def test_they_reach_us(world: World) -> None:
    """If they send to us while we fail to send to them, that is said in words."""
    name, _ = world.named("oneway")
    write_failing(world.synapse, [name], failing_since_ts=1_000_000)
    select(
        world.synapse,
        "INSERT INTO received_transactions (transaction_id, origin, ts, "
        "response_code, response_json, has_been_referenced) "
        f"VALUES ('1', '{name}', {int(time.time() * 1000) - 60_000}, 200, '{{}}', 0)",
    )
    report = world.diagnose(name)
    assert report["kind"] == "connection_refused"
    assert "They reach this homeserver" in report["explanation"]
    assert report["stored"]["reaches_us"] is True


def test_cached_delegation(world: World) -> None:
    """Where Synapse goes by an older answer that it has cached, that is found."""
    laboratory, name, address = world.laboratory, *world.named("moved")
    file = {WELL_KNOWN: m_server(f"{name}:9449")}
    laboratory.serve(address, 443, file, name)
    laboratory.serve(address, 9449, homeserver(name), name)
    laboratory.serve(address, 9450, homeserver(name), name)
    with suppress(ApiError):
        # A request of Synapse's own.
        world.client.request(
            "GET", f"/_matrix/client/v3/directory/room/%23nobody:{name}"
        )
    assert world.diagnose(name)["verdict"] == "ok"
    file[WELL_KNOWN] = m_server(f"{name}:9450")
    report = world.diagnose(name)
    assert (report["verdict"], report["kind"]) == ("degraded", "other"), report
    found = report["stages"]["well_known"]
    assert found["delegated_to"] == f"{name}:9450"
    assert found["cached"]["m_server"] == f"{name}:9449"
    assert found["cached"]["differs"] is True
    assert report["reason"] == "cached_delegation"
    assert re.search(
        r"for (2\d h|1 d).*, until (....-..-.. )?..:.. UTC", report["explanation"]
    )
    assert re.match(r"Wait until (....-..-.. )?..:.. UTC", report["advice"])
    # And while it cannot be fetched, Synapse goes on with it.
    file[WELL_KNOWN] = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"
    report = world.diagnose(name)
    assert (report["verdict"], report["kind"]) == (
        "degraded",
        "well_known_unreachable",
    )
    assert report["stages"]["well_known"]["delegated_to"] == f"{name}:9449"
    assert "the file that it has cached, for " in report["explanation"]


@pytest.mark.parametrize("said", [None, "SERVFAIL"])
def test_dead_resolver(world: World, said: str | None) -> None:
    """A resolver that answers nothing, or errors, is the fault of this host."""
    laboratory = world.laboratory
    folder = laboratory.folder / f"resolver {said}"
    folder.mkdir()
    address = laboratory.address()
    options = "options timeout:1 attempts:1"
    with ExitStack() as stack:
        if said:
            server = stack.enter_context(DnsServer(address))
            server.default = said
        wrapper = with_resolver(folder, address, options)
        synapse = stack.enter_context(start(laboratory, folder.name, wrapper=wrapper))
        report = synapse.as_admin().diagnose(f"a.{ZONE}")
    assert (report["verdict"], report["kind"]) == ("failing", "dns_failed"), report
    assert (report["reason"], report["fault"]) == ("resolver_dead", "us"), report


def test_ipv6(world: World) -> None:
    """An IPv6 address as server name."""
    name = "[::1]:18450"
    world.laboratory.serve("::1", 18450, homeserver(name), "::1")
    report = world.diagnose(name)
    assert report["verdict"] == "ok", report
    (connection,) = report["stages"]["connections"]["connections"]
    assert (connection["address"], connection["sni"]) == ("::1", None)
    assert connection["host_header"] == name


def test_ourselves(world: World) -> None:
    """Our own name is no server to send to."""
    report = world.diagnose(world.synapse.server_name)
    assert (report["verdict"], report["kind"]) == ("failing", "invalid_name")
    assert (report["reason"], report["fault"]) == ("own_name", "us")


def test_led_to_ourselves(world: World) -> None:
    """A name that leads to this homeserver is told as that, by how it leads there."""
    laboratory, ours = world.laboratory, world.synapse.server_name
    delegating, web = world.named("delegating")
    laboratory.serve(web, 443, {WELL_KNOWN: m_server(ours)}, delegating)
    host, _, port = ours.rpartition(":")
    # What else answers there would be told by its certificate.
    pointing = f"{laboratory.name('pointing', host)}:{port}"
    for name, reason in (
        (delegating, "delegated_to_us"),
        (pointing, "address_is_ours"),
    ):
        write_failing(world.synapse, [name], failing_since_ts=1_000_000)
        report = world.diagnose(name)
        assert (report["verdict"], report["kind"]) == ("failing", "is_us"), report
        assert report["reason"] == reason
        assert report["stages"]["keys"]["is_us"] is True
        assert "does not help" in report["advice"]
        answer = world.client.reconnect(name)
        assert answer["outcome"] == "still_failing"
        assert answer["contact"]["error"]["kind"] == "is_us", answer
        world.client.reset_connection(name)
        world.client.send_to_device(f"@x:{name}", "hello")

        def is_recorded(name: str = name) -> bool:
            last = world.client.detail(name)["last_failure"]
            return last is not None and last["kind"] == "is_us"

        wait_until(is_recorded, "real traffic to be recorded so", SOON_S)


def test_one_report_for_all_who_ask(world: World) -> None:
    """One diagnosis of a server at a time, and all who ask meanwhile get that."""
    name, server = world.up("asked", version=hang)
    with ThreadPoolExecutor(20) as pool:
        reports = list(pool.map(world.diagnose, [name] * 20))
    assert all(report == reports[0] for report in reports)
    assert len([path for path, _ in server.requests if path == SEND]) == 1


def test_few_at_a_time(world: World) -> None:
    """Four at a time; who would get no turn in time is told so; nobody waits long."""
    laboratory = world.laboratory
    names = [f"hang{number}.{ZONE}" for number in range(10)]
    address = laboratory.address()
    laboratory.serve(address, 8448, hang, plain=True)
    for name in names:
        laboratory.dns.add(name, "A", address)

    def diagnose(name: str) -> tuple[float, Any]:
        begun = time.monotonic()
        try:
            found: Any = world.diagnose(name)
        except ApiError as e:
            found = e
        return time.monotonic() - begun, found

    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(diagnose, names))
    errors = [report for _, report in found if isinstance(report, ApiError)]
    reports = [report for _, report in found if not isinstance(report, ApiError)]
    assert len(reports) == 4
    for error in errors:
        assert error.status == 429
        assert "M_LIMIT_EXCEEDED" in error.body
        assert '"retry_after_ms":3000' in error.body.replace(" ", "")
    for report in reports:
        assert report["kind"] == "response_timeout"
    # Not one after the other.
    assert max(took_s for took_s, _ in found) < AT_ONCE_S
    # And then there are turns again.
    assert diagnose(names[9])[1]["kind"] == "response_timeout"


def test_not_verified(world: World) -> None:
    """Where Synapse does not verify, what is wrong is shown but stops nothing."""
    laboratory, name, address = world.laboratory, *world.named("unverified")
    laboratory.serve(address, 8448, homeserver(name), context=expired(laboratory, name))
    report = world.diagnose(name)
    assert report["verdict"] == "ok", report
    (connection,) = report["stages"]["connections"]["connections"]
    assert connection["tls"]["is_verified"] is False
    assert connection["tls"]["is_trusted"] is False
    assert [p["kind"] for p in connection["tls"]["problems"]] == ["tls_expired"]


def test_shut_out(world: World) -> None:
    """A real Synapse that shuts us out rejects us; for others see test_e2e_rooms."""
    shut = {"federation_domain_whitelist": ["friend.example"]}
    address = f"{world.laboratory.network}.3"
    with start(
        world.laboratory, "closed", address=address, extra_config=shut
    ) as closed:
        report = world.diagnose(closed.server_name)
    assert (report["verdict"], report["kind"]) == ("failing", "rejected"), report
    assert told_as("rejected", report["explanation"]), report
    assert report["stages"]["authenticated"]["status"] in (401, 403)


class Proxy:
    """An HTTP proxy: connects, or refuses to."""

    def __init__(self, addresses: dict[str, str], answers: dict[str, bytes]) -> None:
        self.asked: list[str] = []
        self._addresses = addresses
        self._answers = answers
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.close = Listener("127.0.0.1", port, self._connect).close

    def _connect(self, connection: socket.socket) -> None:
        head = connection.recv(65536)
        host, _, port = head.split(b" ")[1].decode().rpartition(":")
        self.asked.append(host)
        if host not in self._addresses:
            # Nothing: it takes the request, and is silent, or goes away.
            answer = self._answers[host]
            if answer == b"silence":
                hang(connection)  # type: ignore[arg-type]  # without TLS
            connection.sendall(answer)
            return
        with socket.create_connection((self._addresses[host], int(port))) as other:
            connection.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
            back = threading.Thread(
                target=self._pump, args=(other, connection), daemon=True
            )
            back.start()
            self._pump(connection, other)
            back.join(10)

    @staticmethod
    def _pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


def test_proxy(world: World) -> None:
    """Synapse's proxy connects, and looks names up; what it refuses is its fault."""
    laboratory = world.laboratory
    names = {label: f"{label}.{ZONE}" for label in ("through", "past")}
    # What the proxy answers, whose fault that is, and how it is called.
    refusals = {
        "forbids": (b"HTTP/1.1 403 No\r\n\r\n", "unknown", "proxy_refuses"),
        "bad-gateway": (b"HTTP/1.1 502 No\r\n\r\n", "unknown", "proxy_refuses"),
        "wants": (b"HTTP/1.1 407 No\r\n\r\n", "us", "proxy_authentication"),
        "closes-proxy": (b"", "us", None),
        "silent-proxy": (b"silence", "us", None),
    }
    addresses = {name: laboratory.address() for name in names.values()}
    for name, address in addresses.items():
        laboratory.serve(address, 8448, homeserver(name), name)
    laboratory.name("past", addresses[names["past"]])
    with ExitStack() as stack:
        proxy = Proxy(
            {names["through"]: addresses[names["through"]]},
            {f"{label}.{ZONE}": answer for label, (answer, _, _) in refusals.items()},
        )
        stack.callback(proxy.close)
        environment = {"https_proxy": proxy.url, "no_proxy": names["past"]}
        synapse = stack.enter_context(
            start(laboratory, "proxied", environment=environment)
        )
        client = synapse.as_admin()
        through, past = map(client.diagnose, names.values())
        # With a port, so that no file is asked for.
        by_name = {f"{label}.{ZONE}:8448": of for label, of in refusals.items()}
        write_failing(synapse, list(by_name), failing_since_ts=1_000_000)
        for name, (_, fault, reason) in by_name.items():
            refused = client.diagnose(name)
            is_ = (refused["verdict"], refused["kind"], refused["reason"])
            assert is_ == ("failing", "proxy_failed", reason), refused
            assert refused["fault"] == fault
            # For a proxy that is silent a reconnect waits a minute.
            if name != f"silent-proxy.{ZONE}:8448":
                error = client.reconnect(name)["contact"]["error"]
                is_ = (error["kind"], error["reason"])
                assert is_ == ("proxy_failed", reason), error
        # That nothing is there any more is no fault of those behind it.
        proxy.close()
        unproxied = f"{names['through']}:8448"
        client.send_to_device(f"@x:{unproxied}", "hello")
        found = client.diagnose(unproxied)
        recorded = wait_until(
            lambda: client.detail(unproxied)["last_failure"], "the failure", SOON_S
        )
        contact = client.reconnect(unproxied)["contact"]["error"]
    for failure in (found, contact, recorded):
        assert failure["kind"] == "proxy_failed", failure
    assert found["fault"] == "us", found
    assert "own proxy" in recorded["message"]
    assert through["verdict"] == "ok", through
    (connection,) = through["stages"][3]["findings"]["connections"]
    assert connection["address"] is None
    assert past["verdict"] == "ok", past
    assert names["past"] not in proxy.asked
    assert names["through"] in proxy.asked
