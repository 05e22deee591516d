# SPDX-License-Identifier: Apache-2.0
"""Which homeserver the command line asks, and with whose token."""

import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from cli_case import be_at

from synapse_federation_admin.cli.client import Client
from synapse_federation_admin.cli.connection import (
    Connection,
    Login,
    find_connection,
    keep_login,
    login_file,
    read_listener,
)
from synapse_federation_admin.cli.exits import Exit, FailedError

pytestmark = pytest.mark.one_synapse


@pytest.fixture(autouse=True)
def _at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    be_at(tmp_path, monkeypatch)


def found(
    *homeserver_yaml: Path, url: str | None = None, **environment: str
) -> Connection:
    with mock.patch.dict(os.environ, environment):
        return find_connection(url, homeserver_yaml)


def test_where(tmp_path: Path) -> None:
    """The first that is there says where; a token goes to no other homeserver."""
    with pytest.raises(FailedError, match="not known where") as failed:
        found()
    assert failed.value.exit_code == Exit.USAGE

    synadm = tmp_path / ".config" / "synadm.yaml"
    synadm.parent.mkdir()
    synadm.write_text("{base_url: 'https://s.example/', token: of_synadm, user: a}")
    assert (found().url, found().token) == ("https://s.example", "of_synadm")

    kept = keep_login(Login("https://k.example", "@a:k.example", "kept"))
    assert kept.stat().st_mode & 0o777 == 0o600
    assert (found().url, found().token) == ("https://k.example", "kept")
    assert found(url="https://s.example").token == "of_synadm"
    assert found(url="https://other.example").token is None
    assert found(url="https://k.example/").token == "kept"

    by_name = found(FEDERATION_ADMIN_URL="http://e.example")
    assert (by_name.url, by_name.token) == ("http://e.example", None)
    assert found(FEDERATION_ADMIN_TOKEN="t").token == "t"

    # What is wrong in synadm's file is nothing to who does not need it.
    text = synadm.read_text()
    synadm.write_text(text.replace("of_synadm", "no token"))
    assert (found().token, found(FEDERATION_ADMIN_TOKEN="t").token) == ("kept", "t")
    with pytest.raises(FailedError, match="no access token"):
        found(url="https://s.example")
    synadm.write_text(text)
    with pytest.raises(FailedError, match="kept is for https"):
        _ = Client(found(url="https://other.example")).token

    homeserver = tmp_path / "homeserver.yaml"
    homeserver.write_text(
        "{listeners: [{type: http, port: 1, resources: [{names: [client]}]}]}"
    )
    assert (found(homeserver).url, found(homeserver).token) == (
        "http://127.0.0.1:1",
        None,
    )
    keep_login(Login("http://127.0.0.1:1", "@a:k.example", "kept"))
    assert found(homeserver).token == "kept"
    kept.unlink()
    synadm.unlink()
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "nothing.yaml").write_text("# Nothing yet.\n")
    (tmp_path / "conf.d" / "x.yaml").write_text(
        homeserver.read_text().replace("port: 1", "port: 2")
    )
    assert found(SYNAPSE_CONFIG_PATH=str(homeserver)).url == "http://127.0.0.1:2"
    with pytest.raises(FailedError, match="not both"):
        found(homeserver, url="https://x.example")


def test_login_that_others_can_read(tmp_path: Path) -> None:
    """A file with a token that others can read is not used, and it says why."""
    path = keep_login(Login("https://k.example", "@a:k", "x"))
    path.chmod(0o640)
    with pytest.raises(FailedError, match="chmod 600"):
        found()
    path.chmod(0o600)
    path.write_text("[]")
    with pytest.raises(FailedError, match="cannot be read"):
        found()
    assert path == login_file()


@pytest.mark.parametrize(
    "url",
    [
        "example.org",
        "ftp://x",
        "https://",
        "https://a:b@x",
        "https://x?y",
        "http://x:y",
    ],
)
def test_no_url(url: str) -> None:
    """What is no base URL is told at once."""
    with pytest.raises(FailedError) as failed:
        found(url=url)
    assert failed.value.exit_code == Exit.USAGE


def listener(port: int, *names: str, **more: Any) -> dict[str, Any]:
    return {"type": "http", "port": port, "resources": [{"names": list(names)}], **more}


@pytest.mark.parametrize(
    ("listeners", "url"),
    [
        ([listener(1, "client")], "http://127.0.0.1:1"),
        ([listener(1, "federation"), listener(2, "client")], "http://127.0.0.1:2"),
        (
            [listener(1, "client", tls=True), listener(2, "client")],
            "http://127.0.0.1:2",
        ),
        ([listener(1, "client", bind_addresses=["::"])], "http://[::1]:1"),
        (
            [listener(1, "client", bind_addresses=["::", "0.0.0.0"])],
            "http://127.0.0.1:1",
        ),
        ([listener(1, "client", bind_addresses=["10.0.0.2"])], "http://10.0.0.2:1"),
        ([listener(1, "client", bind_addresses=["fd00::2"])], "http://[fd00::2]:1"),
        ([listener(1, "client", tls=True)], "https://127.0.0.1:1"),
        (
            [listener(1, "client"), listener(0, "client", path="/run/main.sock")],
            "unix:/run/main.sock",
        ),
        (
            [{"type": "metrics", "port": 3}, "nonsense", listener(1, "client")],
            "http://127.0.0.1:1",
        ),
    ],
)
def test_listeners(tmp_path: Path, listeners: Any, url: str) -> None:
    """Of all listeners it is one with the admin API, and of those the nearest."""
    path = tmp_path / "homeserver.yaml"
    path.write_text(json.dumps({"server_name": "x", "listeners": listeners}))
    assert read_listener([path]) == url


def test_no_listener(tmp_path: Path) -> None:
    """What has no such listener, or is no configuration, is told."""
    path = tmp_path / "homeserver.yaml"
    for text in ("server_name: x", "[]", "{", "listeners: [{type: http, port: 1}]"):
        path.write_text(text)
        with pytest.raises(FailedError) as failed:
            read_listener([path])
        assert failed.value.exit_code == Exit.USAGE
    with pytest.raises(FailedError, match="cannot be read"):
        read_listener([tmp_path / "none.yaml"])
    worker = tmp_path / "conf.d"
    worker.mkdir()
    (worker / "w.yaml").write_text(
        json.dumps({"worker_listeners": [listener(7, "client")]})
    )
    path.write_text("server_name: x")
    assert read_listener([path, worker]) == "http://127.0.0.1:7"
