# SPDX-License-Identifier: Apache-2.0
"""A bulk run whose process is killed, again and again, in the middle of it."""

import os
import random
import time
from pathlib import Path

import pytest
from fleet import Fleet, read_rows, select, write_failing

from synapse_federation_admin.playground.certificates import CertificateAuthority
from synapse_federation_admin.playground.processes import wait_until
from synapse_federation_admin.playground.synapse import SynapseServer

pytestmark = [pytest.mark.e2e, pytest.mark.one_synapse]

KILLS = int(os.environ.get("KILLS", "2"))
PER_SECOND = 100


@pytest.mark.timeout(900)
def test_killed(tmp_path: Path) -> None:
    """After each `kill -9` and restart the run goes on; at the end all has been done.

    Every destination has been contacted, and has one outcome. Counts, audit, rows and
    what the servers have seen agree. What had its outcome at a kill is not repeated.
    """
    dice = random.Random(KILLS)
    certificates = CertificateAuthority(tmp_path)
    up, dropping = 20 * KILLS, 80 * KILLS
    with (
        Fleet(certificates, up=up, dropping=dropping) as fleet,
        SynapseServer(tmp_path / "synapse", certificates, postgres=True) as synapse,
    ):
        write_failing(synapse, fleet.names, failing_since_ts=1_000_000)
        before = read_rows(synapse)
        admin = synapse.create_user("admin", admin=True)
        client = synapse.client(admin)
        run_id = client.start_run(all_failing=True, per_second=PER_SECOND)["id"]
        contacts: dict[str, int] = {}
        for _ in range(KILLS):
            done = client.run(run_id)["done"]

            def goes_on(done: int = done) -> bool:
                run = client.run(run_id)
                # On a machine on which restarts are slow, it may be over by now.
                return run["done"] > done or run["ended_ts"] is not None

            wait_until(goes_on, "progress", 120)
            time.sleep(dice.random() * 0.8)
            synapse.process("main").kill()
            outcomes = select(
                synapse,
                "SELECT destination FROM federation_admin_audit "
                "WHERE action = 'reconnect'",
            )
            seen = fleet.contacts
            contacts = {name: seen[name] for (name,) in outcomes} | contacts
            synapse.start()
        wait_until(lambda: client.run(run_id)["ended_ts"], "the run to end", 60)
        run = client.run(run_id)
        entries = client.audit(run_id=run_id, action="reconnect")
        (whole,) = client.audit(run_id=run_id, action="bulk_reconnect")
        after = read_rows(synapse)

        assert run["status"] == "complete"
        assert (run["matched"], run["done"]) == (up + dropping, up + dropping)
        assert run["outcomes"] == {"connected": up, "still_failing": dropping}
        assert sorted((e["destination"], e["outcome"]) for e in entries) == sorted(
            [(name, "connected") for name in fleet.up]
            + [(name, "still_failing") for name in fleet.dropping]
        )
        assert whole["outcome"] == "complete"
        assert whole["details"]["outcomes"] == run["outcomes"]
        for name in fleet.up:
            assert not after[name][0]
        for name in fleet.dropping:
            assert after[name] == before[name]

        assert contacts
        seen = fleet.contacts
        assert {name: seen[name] for name in contacts} == contacts
        assert set(seen) == set(fleet.names)


@pytest.mark.timeout(900)
def test_killed_without_contacts(tmp_path: Path) -> None:
    """So does a run that forgets: each destination is done and counted once."""
    dice = random.Random(KILLS)
    certificates = CertificateAuthority(tmp_path)
    names = [f"host{number:05}.example" for number in range(200 * KILLS)]
    with SynapseServer(tmp_path / "synapse", certificates) as synapse:
        write_failing(synapse, names, failing_since_ts=1_000_000)
        client = synapse.client(synapse.create_user("admin", admin=True))
        body = {"filter": {"failing_for": "30d"}, "dry_run": False}
        run_id = client.start_run("forget", **body)["id"]
        kills = 0
        for _ in range(KILLS):
            before = client.run(run_id)
            wait_until(
                lambda before=before: (
                    (run := client.run(run_id))["done"] > before["done"]
                    or run["ended_ts"]
                ),
                "progress",
                90,
            )
            time.sleep(dice.random() * 0.1)
            kills += client.run(run_id)["ended_ts"] is None
            synapse.process("main").kill()
            synapse.start()
        wait_until(lambda: client.run(run_id)["ended_ts"], "the run to end", 120)
        run = client.run(run_id)
        assert kills, "not killed in mid-run"
        outcomes = {"forgotten": len(names)}
        assert (run["status"], run["outcomes"]) == ("complete", outcomes)
        entries = client.audit(run_id=run_id, action="forget")
        assert sorted(entry["destination"] for entry in entries) == names
        assert {entry["outcome"] for entry in entries} == {"forgotten"}
        (whole,) = client.audit(run_id=run_id, action="bulk_forget")
        assert whole["details"]["outcomes"] == run["outcomes"]
        assert not read_rows(synapse)
