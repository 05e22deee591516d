# SPDX-License-Identifier: Apache-2.0
"""A real Synapse starts without what a feature needs, and everything else works."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import hidden_name
import httpx
import pytest
from fleet import write_failing
from real_synapse import RealSynapse
from test_selfcheck import with_dependents

from synapse_federation_admin.homeserver import relied_on
from synapse_federation_admin.homeserver.features import Feature
from synapse_federation_admin.playground.processes import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.one_synapse]

ADMIN = "/_synapse/admin"
# One for each feature. Nobody listens there.
NAMES = {feature: f"127.3.0.{n}:1" for n, feature in enumerate(Feature, 1)}


def hidden_for(feature: Feature) -> tuple[str, str]:
    """Return something that a feature needs, and as few others as there are."""
    if feature is Feature.V2:
        return "pydantic", "1.10.26"
    named = [
        (len(needed_by), (root, path))
        for needed_by, root, path in hidden_name.relied_on_names()
        if feature in needed_by
    ]
    tables = [
        (len(needed_by), ("table", table))
        for needed_by, table, _ in relied_on.COLUMNS
        if feature in needed_by
    ]
    return min(named or tables)[1]


def off_without(root: str, path: str) -> set[Feature]:
    """Return what is off without something."""
    if root == "pydantic":
        return {Feature.V2}
    if root == "table":
        needing = [of for of, table, _ in relied_on.COLUMNS if table == path]
        return set().union(*needing)
    named = {
        (root, path): needed_by
        for needed_by, root, path in hidden_name.relied_on_names()
    }
    return with_dependents(named[root, path])


# The audit needs nothing but what all do.
WITH_NEEDS = [feature for feature in Feature if feature is not Feature.AUDIT]


class Homeserver:
    """One process, and what is hidden in it."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "hidden.json"
        self.file.write_text('["", ""]')
        wrapper = [sys.executable, hidden_name.__file__, str(self.file)]
        self.synapse = RealSynapse(folder, wrapper=wrapper)
        self.http: httpx.Client

    def hide(self, root: str, path: str) -> None:
        self.file.write_text(json.dumps([root, path]))
        self.synapse.restart()

    def get(self, path: str) -> httpx.Response:
        return self.http.get(ADMIN + path)


@pytest.fixture(scope="module")
def homeserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Homeserver]:
    """Start Synapse once; each test restarts it."""
    found = Homeserver(tmp_path_factory.mktemp("features"))
    with found.synapse:
        found.http = found.synapse.as_admin().http
        # None is left open while Synapse starts again.
        found.http.headers["Connection"] = "close"
        write_failing(found.synapse, NAMES.values(), failing_since_ts=1_000_000)
        yield found


@pytest.mark.parametrize("feature", WITH_NEEDS, ids=lambda feature: feature.value)
def test_feature(homeserver: Homeserver, feature: Feature) -> None:
    """Synapse starts, v1 works, and what needs what is missing is off."""
    root, path = hidden_for(feature)
    off = off_without(root, path)
    assert feature in off
    homeserver.hide(root, path)

    rows = homeserver.get("/v1/federation/destinations")
    assert rows.status_code == 200, rows.text
    assert rows.json()["total"] == len(NAMES)
    name = NAMES[feature]
    assert homeserver.get(f"/v1/federation/destinations/{name}").status_code == 200
    path = f"/v1/federation/destinations/{name}/reset_connection"
    assert homeserver.http.post(ADMIN + path, json={}).status_code == 200

    if Feature.MOUNT in off:
        assert homeserver.get("/v2/federation/status").status_code == 404
        return
    if off & {Feature.BASE, Feature.V2}:
        answer = homeserver.get("/v2/federation/status")
        assert answer.status_code == 503
        assert f"'{feature.value}' is off" in answer.json()["error"]
        return

    def is_off() -> bool:
        status = homeserver.get("/v2/federation/status").json()
        told = {name for name, state in status["features"].items() if not state["on"]}
        return told == {feature.value for feature in off}

    # Tables are looked at soon after the start.
    wait_until(is_off, "the features to be off", 90)
