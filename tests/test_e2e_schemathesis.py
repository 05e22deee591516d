# SPDX-License-Identifier: Apache-2.0
"""A real Synapse, and the requests that schemathesis makes up from the document."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from synapse_federation_admin.playground.client import FEDERATION_V2
from synapse_federation_admin.playground.processes import wait_until
from synapse_federation_admin.playground.remote import Behaviour
from synapse_federation_admin.playground.world import Playground

pytestmark = [pytest.mark.e2e, pytest.mark.one_synapse]

# Those that fail at once: the others keep a request waiting.
QUICK = (Behaviour.HEALTHY, Behaviour.DOWN, Behaviour.EXPIRED_CERTIFICATE)

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)

# For each operation and way of making requests up; all together take under a minute.
MAX_EXAMPLES = 10


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Playground]:
    """Remote servers, and no others: names that are made up lead nowhere."""
    extra: dict[str, object] = {}
    world = Playground(tmp_path_factory.mktemp("world"), extra_config=extra)
    extra["federation_domain_whitelist"] = [
        remote.server_name for remote in world.remotes.values()
    ]
    with world:
        client = world.client
        room_id = client.create_room()
        for behaviour in QUICK:
            remote = world.remotes[behaviour]
            remote.join_room(room_id, world.synapse.server_name)
            remote.switch(behaviour)
        client.send_message(room_id, "waiting")
        for behaviour in QUICK[1:]:
            name = world.remotes[behaviour].server_name
            client.send_to_device(f"@x:{name}", "waiting too")

        def are_failing() -> bool:
            rows = client.destinations()["destinations"]
            return sum(row["failure_ts"] is not None for row in rows) == len(QUICK) - 1

        wait_until(are_failing, "those that fail to do so", 90)
        yield world


def test_made_up_requests(world: Playground, tmp_path: Path) -> None:
    """Whatever is asked: no 5xx, and every answer is as the document has it."""
    client = world.client
    document = client.request("GET", f"{FEDERATION_V2}/openapi.json")
    body = {"max_retry_interval_ms": 10**9}
    run = client.request("POST", f"{FEDERATION_V2}/cap_backoff", json=body)
    names = [world.remotes[behaviour].server_name for behaviour in QUICK]
    known = {
        "destination": [*names, "unknown.example", "no name"],
        "run_id": [run["id"], "unknown"],
    }
    for methods in document["paths"].values():
        for operation in methods.values():
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path":
                    parameter["schema"]["enum"] = known[parameter["name"]]
                # Twisted takes no URL that is as long as that.
                parameter["schema"].pop("maxLength", None)
    file = tmp_path / "openapi.json"
    file.write_text(json.dumps(document))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", str(file)),
            *("--url", client.base_url, "--checks", ",".join(CHECKS)),
            *("--header", f"Authorization: Bearer {client.access_token}"),
            *("--phases", "coverage,fuzzing", "--max-examples", str(MAX_EXAMPLES)),
            # One: before 3.13, Python's parser, which describes what was made up, fails
            # at times where two threads use it at once (SystemError).
            *("--workers", "1", "--seed", "1", "--no-shrink", "--no-color"),
            *("--continue-on-failure", "--suppress-health-check", "all"),
            *("--request-timeout", "30", "--generation-database", "none"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-3000:]
