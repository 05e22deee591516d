# SPDX-License-Identifier: Apache-2.0
"""Processes of two versions of this module on one database."""

from pathlib import Path

import pytest
from earlier_version import EarlierVersion
from fleet import select, write_failing
from later_version import THIS, LaterVersion
from real_synapse import Admin, RealSynapse

from synapse_federation_admin.playground.client import FEDERATION_V2 as V2, ApiError
from synapse_federation_admin.playground.configuration import (
    FEDERATION_SENDERS,
    GENERIC_WORKER,
    MAIN,
    WORKERS,
)
from synapse_federation_admin.playground.processes import wait_until
from synapse_federation_admin.storage.definitions import VERSIONS

pytestmark = [pytest.mark.e2e, pytest.mark.one_synapse]

NOW = (THIS, VERSIONS[-1].compat)

# Nobody listens there.
NAMES = [f"127.3.0.{number}:1" for number in range(1, 41)]
JUST_FAILING = "retry_last_ts = 1, retry_interval = 1, failure_ts = 1"
# Where the runs of version 2 are.
TASKS = (
    "SELECT COUNT(*) FROM scheduled_tasks WHERE action = 'federation_admin_reconnects'"
)


def works(client: Admin, reset: str) -> None:
    """Find everything to work, whatever the later version has written."""
    name = NAMES[0]
    assert len(client.destinations()["destinations"]) == len(NAMES)
    client.reset_connection(reset)
    assert "reset" in {
        entry["action"] for entry in client.audit(destination=reset, limit=100)
    }
    (entry,) = client.audit(destination=name)
    assert (entry["action"], entry["outcome"]) == ("teleport", "landed")
    ended = [(outage["ended"], outage["kinds"]) for outage in client.outages(name)]
    assert ("gave_up", ["gone", "quantum"]) in ended
    found = client.detail(name)
    assert "quantum" in {failure["kind"] for failure in found["failures"]}
    assert found["availability"] is not None
    run = client.run("later")
    assert (run["action"], run["status"]) == ("teleport", "landing")
    assert client.v2("runs")["runs"][-1] == run
    client.v2("destinations", include="failure", failure="unknown")
    assert client.v2("summary")["outlook"] is not None


def version(synapse: RealSynapse) -> tuple[int, ...]:
    """Return the version of the tables, and that of the oldest code for them.

    Version 2 has no second one.
    """
    ((_, *found),) = select(synapse, "SELECT * FROM federation_admin_schema")
    return tuple(map(int, found))


def test_versions(tmp_path: Path) -> None:
    """One process is upgraded and taken back, beside another of this version.

    Where the later tables are compatible, the earlier code works on, with them and
    after a start of its own. Where they are not, v1 works, and the rest is told why.
    """
    later = LaterVersion(tmp_path / "later.json", NAMES[0])
    with RealSynapse(tmp_path, workers=True, wrapper=later.wrapper) as synapse:
        write_failing(synapse, NAMES, failing_since_ts=1_000_000)
        main, worker = synapse.as_admin(), synapse.as_admin(GENERIC_WORKER)
        assert len(worker.audit()) == 0
        assert version(synapse) == NOW

        later.run(MAIN)
        synapse.restart()
        wait_until(lambda: version(synapse) == (THIS + 1, THIS), "an upgrade", 90)
        works(worker, reset=NAMES[1])
        works(main, reset=NAMES[2])

        later.run()
        synapse.restart()
        works(main, reset=NAMES[3])
        works(worker, reset=NAMES[4])
        assert version(synapse) == (THIS + 1, THIS)

        # As a later version leaves it that is not compatible.
        select(synapse, "UPDATE federation_admin_schema SET compat_version = version")
        synapse.restart(GENERIC_WORKER)
        select(synapse, f"UPDATE destinations SET {JUST_FAILING}")
        assert len(worker.destinations()["destinations"]) == len(NAMES)
        worker.reset_connection(NAMES[1])
        with pytest.raises(ApiError) as raised:
            worker.audit()
        assert raised.value.status == 503
        assert "later version" in str(raised.value)
        assert "Cannot write to the audit" in synapse.log_tail(GENERIC_WORKER, 1000)


@pytest.mark.parametrize("workers", [False, True], ids=["sqlite", "workers"])
def test_version_2(tmp_path: Path, workers: bool) -> None:
    """What version 2 has begun is carried over; v1 answers all the time.

    On workers, a process of that version goes on beside the first of this one.
    """
    earlier = EarlierVersion(tmp_path / "earlier")
    earlier.run(MAIN, *WORKERS)
    with RealSynapse(tmp_path, workers=workers, wrapper=earlier.wrapper) as synapse:
        write_failing(synapse, NAMES, failing_since_ts=1_000_000)
        client = synapse.as_admin()
        client.reset_connection(NAMES[0])
        wait_until(
            lambda: client.destination(NAMES[0])["failure_ts"], "it to fail again", 30
        )
        body = {"all_failing": True, "per_second": 0.2, "reason": "carried over"}
        run = client.request("POST", f"{V2}/reconnects", json=body)
        path = f"{V2}/reconnects/{run['id']}"
        wait_until(lambda: client.request("GET", path)["done"], "progress", 90)
        (tasks,) = select(synapse, TASKS)
        assert int(tasks[0]) > 0

        if workers:
            earlier.run(MAIN, *FEDERATION_SENDERS)
            worker = synapse.as_admin(GENERIC_WORKER)
            synapse.restart(GENERIC_WORKER)
            wait_until(lambda: version(synapse) == NOW, "an upgrade", 90)
            for each in (client, worker):
                assert len(each.destinations()["destinations"]) == len(NAMES)
                select(synapse, f"UPDATE destinations SET {JUST_FAILING}")
                each.reset_connection(NAMES[1])
        synapse.process(MAIN).kill()
        earlier.run()
        synapse.start()
        wait_until(lambda: select(synapse, TASKS) == [["0"]], "no old tasks", 90)
        assert version(synapse) == NOW
        begun = client.run(run["id"])
        assert (begun["status"], begun["reason"]) == ("running", "carried over")
        assert begun["matched"] == len(NAMES)
        wait_until(
            lambda: client.run(run["id"])["done"] > begun["done"] > 0, "progress", 30
        )
        client.request("DELETE", f"{V2}/runs/{run['id']}")
        found = {(entry["action"], entry["outcome"]) for entry in client.audit()}
        assert found >= {
            ("reset", "reset"),
            ("bulk_reconnect", "cancelled"),
            ("reconnect", "still_failing"),
        }
        assert client.outages(NAMES[0])
        client.reset_connection(NAMES[2])
        assert client.destination(NAMES[2])["failure_ts"] is None
