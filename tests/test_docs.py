# SPDX-License-Identifier: Apache-2.0
"""The documentation cannot drift: what there is, is there, and nothing else."""

import re
from pathlib import Path

import pytest
import yaml
from _made import with_commands, with_tables
from relied_on_table import ROW, written

from synapse_federation_admin import __version__
from synapse_federation_admin.api import ROUTES
from synapse_federation_admin.api._openapi import declared_for
from synapse_federation_admin.api._operation import json_schema
from synapse_federation_admin.cli import command_line, manual
from synapse_federation_admin.config import (
    CONFIG_KEYS,
    OLDEST_SYNAPSE,
    FederationAdminConfig,
)
from synapse_federation_admin.destinations.values import DestinationStatus
from synapse_federation_admin.homeserver.features import Feature

pytestmark = pytest.mark.one_synapse

REPOSITORY = Path(__file__).parent.parent
DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def read(name: str) -> str:
    return (REPOSITORY / name).read_text()


def test_routes() -> None:
    """Every route is in docs/api.md with its method, and none that there isn't."""
    documented = re.findall(
        r"^    (GET|PUT|POST|DELETE) (/\S+)$", read("docs/api.md"), re.MULTILINE
    )
    assert sorted(documented) == sorted((r.method, r.path) for r in ROUTES)


# What the command line calls otherwise.
OPTIONS = {
    "timeout_ms": "timeout",
    "max_retry_interval_ms": "longest",
    "destinations": "names",
    "filter": "failing_for",
    "from": "from_",
}


def test_reachable() -> None:
    """All of v2 is in the table for people; the command takes all that a route does."""
    row = r"^\| `([A-Z]+)` \| `(/\S+)` \| (.+) \| (.*) ?\|$"
    rows = re.findall(row, read("docs/api.md"), re.MULTILINE)
    prefix = "/_synapse/admin/v2/federation"
    routes = {(r.method, r.path): r for r in ROUTES if r.path.startswith(prefix)}
    assert sorted((method, prefix + path) for method, path, *_ in rows) == sorted(
        routes
    )
    for method, path, told, page in rows:
        # That is for programs, and `top` asks for changes by itself.
        if path in ("/openapi.json", "/changes"):
            continue
        assert page, path
        command = command_line().commands[told.split("`")[1].split()[0]]
        taken = json_schema(declared_for(routes[method, prefix + path]).takes)
        options = {OPTIONS.get(key, key) for key in taken.get("properties", ())}
        assert options <= {str(param.name) for param in command.params}, path


def test_configuration() -> None:
    """Every key has a section and a row in docs/configuration.md, and no other has."""
    text = read("docs/configuration.md")
    for line in (r"^### `([\w.]+)`$", r"^\| `([\w.]+)` \| `"):
        assert re.findall(line, text, re.MULTILINE) == list(CONFIG_KEYS)
    defaults = FederationAdminConfig()
    assert f"by default `{str(defaults.contact_on_reset).lower()}`" in text
    assert f"by default `{defaults.contact_timeout_ms // 1000}s`" in text
    assert f"by default `{defaults.audit_keep_for_ms // 86_400_000}d`" in text
    assert f"by default `{defaults.bulk_max_per_second}`" in text
    assert f"by default `{defaults.diagnosis_timeout_ms // 1000}s`" in text
    assert f"by default `{defaults.outages_keep_for_ms // 86_400_000}d`" in text


def test_alerts() -> None:
    """Every alert is explained in docs/metrics.md, with its severity."""
    (group,) = yaml.safe_load(read("docs/alerts.yaml"))["groups"]
    explained = re.findall(
        r"^\| `(Federation\w+)` \| (\w+) \|", read("docs/metrics.md"), re.MULTILINE
    )
    rules = [(rule["alert"], rule["labels"]["severity"]) for rule in group["rules"]]
    assert explained == rules
    for rule in group["rules"]:
        # Gauges are read every two minutes: that they once say so must not be enough,
        # as when senders start after the main process.
        if "_total" not in rule["expr"]:
            assert int(rule["for"].rstrip("mh")) >= 5 or rule["for"].endswith("h")


def test_statuses() -> None:
    """Every status of a destination is explained, and is among those of the gauge."""
    api, metrics = read("docs/api.md"), read("docs/metrics.md")
    (of_gauge,) = re.findall(r"_destinations` \| `status`: ([^|]+) \|", metrics)
    for status in DestinationStatus:
        assert f"\n| `{status.value}` | " in api
        assert f"`{status.value}`" in of_gauge


def test_features() -> None:
    """Every feature that can be off has its line in docs/operations.md."""
    text = read("docs/operations.md")
    for feature in Feature:
        assert re.search(rf"^\|[^|]*`{feature.value}`", text, re.MULTILINE), feature


def test_tables() -> None:
    """Every table of the module's own is explained, and dropped with the module."""
    text = read("docs/operations.md")
    made = re.findall(
        r"EXISTS (federation_admin_\w+) \(",
        read("synapse_federation_admin/storage/definitions.py"),
    )
    dropped = re.findall(r"^DROP TABLE IF EXISTS (\w+);$", text, re.MULTILINE)
    explained = re.findall(r"^\| `(federation_admin_\w+)` \| .* \|", text, re.M)
    # The schema's own is made elsewhere.
    schema = "federation_admin_schema"
    assert {*made, schema} == {*dropped} == {*explained} & {*made, schema}


def test_commands() -> None:
    """Every command is in docs/cli.md with all its options, as it describes itself."""
    text = read("docs/cli.md")
    assert with_commands(text) == text
    sections = re.findall(r"^### `(.+)`$", text, re.MULTILINE)
    assert sorted(sections) == sorted(command_line().commands)
    for name in manual.commands(command_line()):
        assert f"<!-- command: {name} -->" in text
    for option in command_line().commands["playground"].params:
        assert f"`{option.opts[0]}" in read("docs/playground.md"), option.opts


def test_supported_versions() -> None:
    """README, docs and tox agree on the supported versions of Synapse."""
    oldest = ".".join(map(str, OLDEST_SYNAPSE))
    pinned = re.findall(r"matrix-synapse==([\d.]+)", read("tox.ini"))
    assert pinned == ["1.163.2", f"{oldest}.0"]
    for name in ("README.md", "docs/install.md"):
        assert f"Synapse {oldest} to {pinned[0]}" in read(name)


def test_changelog() -> None:
    """The changelog begins with this version."""
    newest = re.search(r"^## \[?([\w.]+)", read("CHANGELOG.md"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == __version__


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_made_tables(document: Path) -> None:
    """The tables of parameters, keys, kinds and reasons are current."""
    text = document.read_text()
    assert text == with_tables(text), "python docs/_made.py"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links(document: Path) -> None:
    """Links between the documents lead somewhere."""
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", document.read_text()):
        name, _, anchor = target.partition("#")
        file = document.parent / name if name else document
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            anchors = {
                re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-")
                for h in headings
            }
            assert anchor in anchors, target


def test_readme_commands_are_those_of_ci() -> None:
    """What CI runs is, to the letter, README's command for all tests."""
    command = read(".ci/run").splitlines()[-1]
    assert f"```sh\n{command}\n```" in read("README.md")


def test_relied_on() -> None:
    """All that is relied on is in docs/architecture.md, with why, and what is off."""
    text = read("docs/architecture.md")
    assert written(text) == text, "run tests/relied_on_table.py"
    for part, _, reason, _ in ROW.findall(text):
        assert reason, part
