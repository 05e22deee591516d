# SPDX-License-Identifier: Apache-2.0
"""Bulk runs whose process is killed, again and again, in the middle of them."""

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from deadlines import SOON_S
from fleet import HOUR_MS, Fleet, read_rows, select, write_failing
from real_synapse import RealSynapse

from synapse_federation_admin.playground.configuration import MAIN
from synapse_federation_admin.playground.processes import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.one_synapse]

KILLS = 4
PER_SECOND = 100
DICE = random.Random(KILLS)


@pytest.fixture(scope="module", params=[False, True], ids=["sqlite", "postgres"])
def synapse(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealSynapse]:
    folder = tmp_path_factory.mktemp("killed")
    with RealSynapse(folder, postgres=request.param) as synapse:
        yield synapse


def killed(
    synapse: RealSynapse,
    run_id: str,
    within_s: float,
    look: Callable[[], None] = lambda: None,
) -> tuple[Any, list[Any]]:
    """Kill the process some times while a run gets on, and see the run to its end.

    Args:
        synapse: Whose process it is.
        run_id: The run.
        within_s: Seconds after some progress within which the process is killed.
        look: Is called while there is no process.

    Returns:
        The run, and what the audit has of its servers.
    """
    client, in_the_midst = synapse.as_admin(), 0
    for _ in range(KILLS):
        done = client.run(run_id)["done"]

        def goes_on(done: int = done) -> bool:
            run = client.run(run_id)
            # On a machine on which restarts are slow, it may be over by now.
            return run["done"] > done or run["ended_ts"] is not None

        wait_until(goes_on, "progress", SOON_S, 0.01)
        time.sleep(DICE.random() * within_s)
        synapse.process(MAIN).kill()
        in_the_midst += select(
            synapse,
            "SELECT COUNT(*) FROM federation_admin_runs "
            f"WHERE run_id = '{run_id}' AND ended_ts IS NULL",
        ) == [["1"]]
        look()
        synapse.start()
    assert in_the_midst, "not killed in mid-run"
    run = client.ended(run_id)
    (whole,) = client.audit(run_id=run_id, action=f"bulk_{run['action']}")
    assert (run["status"], whole["outcome"]) == ("complete", "complete")
    assert whole["details"]["outcomes"] == run["outcomes"]
    return run, client.audit(run_id=run_id, action=run["action"])


def test_reconnect(synapse: RealSynapse) -> None:
    """After each `kill -9` and restart the run goes on; at the end all has been done.

    Every destination has been contacted, and has one outcome. Counts, audit, rows and
    what the servers have seen agree. What had its outcome at a kill is not repeated.
    """
    up, dropping = 20 * KILLS, 80 * KILLS
    with Fleet(synapse.certificates, up=up, dropping=dropping) as fleet:
        write_failing(synapse, fleet.names, failing_since_ts=1_000_000)
        before = read_rows(synapse)
        contacts: dict[str, int] = {}

        def look() -> None:
            nonlocal contacts
            query = "SELECT destination FROM federation_admin_audit WHERE action = "
            outcomes = select(synapse, f"{query}'reconnect'")
            seen = fleet.contacts
            contacts = {name: seen[name] for (name,) in outcomes} | contacts

        run = synapse.as_admin().start_run(all_failing=True, per_second=PER_SECOND)
        run, entries = killed(synapse, run["id"], 0.8, look)
        assert (run["matched"], run["done"]) == (up + dropping, up + dropping)
        assert run["outcomes"] == {"connected": up, "still_failing": dropping}
        assert sorted((e["destination"], e["outcome"]) for e in entries) == sorted(
            [(name, "connected") for name in fleet.up]
            + [(name, "still_failing") for name in fleet.dropping]
        )
        after = read_rows(synapse)
        assert not any(after[name][0] for name in fleet.up)
        assert {n: after[n] for n in fleet.dropping} == {
            n: before[n] for n in fleet.dropping
        }
        assert contacts
        seen = fleet.contacts
        assert {name: seen[name] for name in contacts} == contacts
        assert set(seen) == set(fleet.names)


@pytest.mark.parametrize(
    ("action", "outcome", "count", "body"),
    [
        ("cap_backoff", "capped", 4000, {"max_retry_interval_ms": 2 * HOUR_MS}),
        ("forget", "forgotten", 400, {"filter": {"failing_for": "30d"}}),
    ],
)
def test_without_contacts(
    synapse: RealSynapse, action: str, outcome: str, count: int, body: dict[str, Any]
) -> None:
    """So does a run that only writes: each destination is done and counted once."""
    names = [f"host{number:05}.example" for number in range(count * KILLS)]
    select(synapse, "DELETE FROM destinations")
    write_failing(synapse, names, failing_since_ts=1_000_000)
    before = read_rows(synapse)
    run = synapse.as_admin().start_run(action, dry_run=False, **body)
    run, entries = killed(synapse, run["id"], 0.4)
    assert run["outcomes"] == {outcome: len(names)}
    assert sorted(entry["destination"] for entry in entries) == names
    assert {entry["outcome"] for entry in entries} == {outcome}
    capped = {n: (last, 2 * HOUR_MS, ts) for n, (last, _, ts) in before.items()}
    assert read_rows(synapse) == (capped if action == "cap_backoff" else {})
