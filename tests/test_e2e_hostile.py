# SPDX-License-Identifier: Apache-2.0
"""Bulk runs where the network, or this process, has nothing to give, for real."""

import socket
import ssl
import time
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from deadlines import SOON_S
from dns_server import silent
from fleet import read_rows, write_failing
from laboratory import Laboratory, as_json
from own_resolver import with_resolver
from real_synapse import RealSynapse

from synapse_federation_admin import limits
from synapse_federation_admin.playground.processes import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.root, pytest.mark.one_synapse]

SINCE_TS = 1_600_000_000_000
SILENT = "127.77.1.53"


def test_silent_dns(tmp_path: Path) -> None:
    """While no name server answers, a run takes no more than its threads.

    It slows down: who is contacted has been looked up, and it is said that the DNS does
    not answer. A name whose label is too long is not looked up at all.
    """
    names = [f"host{number:04}.example" for number in range(600)]
    long = [f"{'a' * 64}.host{number}.example" for number in range(50)]
    wrapper = with_resolver(tmp_path, SILENT, "options timeout:2 attempts:1")
    with silent(SILENT), RealSynapse(tmp_path, wrapper=wrapper) as synapse:
        write_failing(synapse, [*names, *long], failing_since_ts=SINCE_TS)
        client = synapse.as_admin()
        process = psutil.Process(synapse.process("main").pid)
        descriptors = [process.num_fds()]
        run_id = client.start_run(all_failing=True, per_second=500, timeout_ms=1000)

        def goes_on() -> bool:
            descriptors.append(process.num_fds())
            return client.run(run_id["id"])["done"] > limits.DNS_LOOKUPS + len(long)

        wait_until(goes_on, "further look-ups", SOON_S)
        run = client.run(run_id["id"])
        # A few of them are of Synapse, and of who asks.
        assert max(descriptors) - descriptors[0] < limits.DNS_LOOKUPS + 30
        assert set(run["errors"]) == {"dns_failed"}
        assert run["done"] < len(names)
        found = client.reconnect(long[0])
        error = found["contact"]["error"]
        assert error["kind"] == "invalid_name"
        assert error["message"].startswith("Invalid server name: ")
        assert "DNS lookup failed" in str(client.audit(destination=names[0]))
        assert found["contact"]["duration_ms"] == 0
        assert all(row[2] is not None for row in read_rows(synapse).values())


def test_descriptors_run_out(tmp_path: Path) -> None:
    """With hardly any descriptor left a run fails no destination: it takes its time.

    Nor is anything of it recorded as what other servers do.
    """
    names = [f"up{number}.lab.example" for number in range(60)]

    def answer(connection: ssl.SSLSocket) -> None:
        time.sleep(0.5)
        connection.sendall(as_json({"pdus": {}}, b"Connection: close\r\n"))

    with Laboratory(tmp_path) as laboratory, ExitStack() as stack:
        address = laboratory.address()
        for name in names:
            laboratory.name(name.partition(".")[0], address)
        laboratory.serve(address, 8448, answer, *names)
        few = ["sh", "-c", 'ulimit -n 200 && exec "$0" "$@"', *laboratory.wrapper]
        synapse = stack.enter_context(
            RealSynapse(
                tmp_path,
                laboratory.certificates,
                extra_config={"federation_ip_range_blacklist": []},
                wrapper=few,
            )
        )
        write_failing(synapse, names, failing_since_ts=SINCE_TS)
        client = synapse.as_admin()
        process = psutil.Process(synapse.process("main").pid)
        # Connections of others take what there is but for a few.
        port = synapse.layout.client_ports["main"]
        held = stack.enter_context(ExitStack())
        while process.num_fds() < 192:
            held.enter_context(socket.create_connection(("127.0.0.1", port)))
            time.sleep(0.01)
        run_id = client.start_run(all_failing=True, per_second=100)["id"]
        text = "found nothing left"
        log = synapse.folder / "main.log"
        wait_until(lambda: text in log.read_text(), "nothing to be left", 90)
        held.close()
        run = client.ended(run_id)
        assert run["outcomes"] == {"connected": len(names)}, run
        assert run["errors"] == {}
        for found in client.v2("destinations", include="failure")["destinations"]:
            assert not found.get("failure"), found
