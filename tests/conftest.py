# SPDX-License-Identifier: Apache-2.0
"""Makes Synapse's own test harness importable, and PostgreSQL available to it.

Synapse's package `tests` is in its source distribution, not in its wheel. That of
exactly the installed version is fetched once, and cached outside of the repository.
"""

import atexit
import functools
import gc
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO
from unittest import mock

import httpx
import pytest
import trustme
from deadlines import SOON_S
from forked import fork
from hypothesis import settings

from synapse_federation_admin import limits
from synapse_federation_admin.playground.processes import ChildProcess
from synapse_federation_admin.playground.services import Postgres

# The same examples each time, however busy the machine is.
settings.register_profile("same", deadline=None, derandomize=True)
settings.load_profile("same")

# What takes longest, which begins first: the others then fill what time is left.
_LONGEST = (
    *("test_e2e_outages", "test_e2e_bulk_kill", "test_playground", "test_e2e_cluster"),
    *("test_e2e_diagnosis", "test_e2e_outlook", "test_e2e_refused"),
    *("test_e2e_failures", "test_browser_console", "test_e2e_senders"),
)

REPOSITORY = Path(__file__).parent.parent

# Where the files of this run's tests are.
_OWN_FOLDER = pytest.StashKey[Path]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--postgres",
        action="store_true",
        help="run the tests marked `database`, and only those, on PostgreSQL",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.option.basetemp is None and not hasattr(config, "workerinput"):
        # pytest's own, /tmp/pytest-of-root, is for all runs of root: one that begins
        # closes it to others, and the PostgreSQL of another, which is not root, is out.
        config.option.basetemp = tempfile.mkdtemp(prefix="federation-admin-tests-")
        config.stash[_OWN_FOLDER] = Path(config.option.basetemp)
    sys.path.insert(0, str(synapse_tests()))
    # With pytest-xdist, its processes, which run the tests, each have one of their own.
    if config.getoption("--postgres") and config.getoption("dist", "no") == "no":
        start_postgres()


@pytest.fixture(scope="session", autouse=True)
def _slow_machine() -> Iterator[None]:
    """Have no test take more turns of the reactor where a machine is slow."""
    with mock.patch.object(limits, "TURN_MS", 600_000):
        yield


@pytest.fixture(scope="session", autouse=True)
def _checked_answers() -> Iterator[None]:
    """Hold what real processes answer against the OpenAPI document."""
    # Not before: it imports the module, of which a test of its import knows better.
    from answers import check_answer

    send = httpx.Client.send
    hasty = httpx.Timeout(5).as_dict()

    @functools.wraps(send)
    def checked(client: httpx.Client, request: httpx.Request, **how: Any) -> Any:
        if request.extensions.get("timeout") == hasty:
            # What httpx has where nobody says how long: a busy machine takes longer.
            request.extensions["timeout"] = httpx.Timeout(SOON_S).as_dict()
        response = send(client, request, **how)
        if not how.get("stream"):
            check_answer(
                request.method,
                request.url.raw_path.decode("ascii"),
                response.status_code,
                response.headers.get("Content-Type", ""),
                response.content,
            )
        return response

    with mock.patch.object(httpx.Client, "send", checked):
        yield


@pytest.fixture(scope="session", autouse=True)
def _few_authorities(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Have the system trust one authority, of nobody, in place of its hundred.

    To load those took a tenth of the time of a short test.
    """
    file = tmp_path_factory.mktemp("authorities") / "nobody.pem"
    trustme.CA().cert_pem.write_to_path(str(file))
    with mock.patch.dict(os.environ, SSL_CERT_FILE=str(file)):
        yield


@pytest.fixture(scope="session", autouse=True)
def _forked_processes() -> Iterator[None]:
    """Fork Synapse's processes, where another program would be executed."""
    execute = ChildProcess._spawn

    def spawn(process: ChildProcess, output: BinaryIO) -> Any:
        return fork(process, output) or execute(process, output)

    with mock.patch.object(ChildProcess, "_spawn", spawn):
        yield


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With --postgres, import no file in which nothing is run: each process would."""
    if config.getoption("--postgres") and collection_path.match("test_*.py"):
        return "mark.database" not in collection_path.read_text("utf-8") or None
    return None


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    left_out = {*missing_programs(), *(["root"] if os.geteuid() else [])}
    needed = {"database"} if config.getoption("--postgres") else set()

    def is_run(item: pytest.Item) -> bool:
        markers = {marker.name for marker in item.iter_markers()}
        return needed <= markers and not left_out & markers

    config.hook.pytest_deselected(items=[i for i in items if not is_run(i)])
    items[:] = filter(is_run, items)
    if hasattr(config, "workerinput"):
        # What starts real processes mostly waits, for seconds. It comes first, lest one
        # process of pytest-xdist still waits when the others have nothing left to do.
        items.sort(key=_turn)


def _turn(item: pytest.Item) -> tuple[bool, int]:
    """Return by what the turn of a test goes, among those that run at once."""
    places = {name: place for place, name in enumerate(_LONGEST)}
    is_quick = item.get_closest_marker("e2e") is None
    return is_quick, places.get(item.path.stem, len(places))


def pytest_collection_finish() -> None:
    """Look for no garbage among what is there for good: 300,000 objects."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _nothing_left_open() -> Iterator[None]:
    """Have a socket that nobody has closed be an error of the tests that opened it.

    Else it is one of whichever tests are running when Python comes across it.
    """
    yield
    gc.collect()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail if a test was skipped: nothing here is meant to be."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    folder = session.config.stash.get(_OWN_FOLDER, None)
    if folder is not None and session.exitstatus == pytest.ExitCode.OK:
        shutil.rmtree(folder, ignore_errors=True)


def pytest_report_header(config: pytest.Config) -> list[str]:
    folder = config.stash.get(_OWN_FOLDER, None)
    lines = [] if folder is None else [f"files, kept if a test fails: {folder}"]
    lines += [
        f"no {name}: tests marked `{marker}` are left out"
        for marker, name in missing_programs().items()
    ]
    return lines


def missing_programs() -> dict[str, str]:
    """Return the programs that this system lacks, by the marker of what needs them.

    In CI such tests fail.
    """
    found = {"browser": find_chromium(), "nginx": find_nginx()}
    names = {"browser": "Chromium", "nginx": "nginx"}
    if os.environ.get("CI"):
        return {}
    return {marker: names[marker] for marker, path in found.items() if path is None}


def find_nginx() -> str | None:
    """Return the path of the system's nginx, if it has one."""
    # Debian has it where only root looks.
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


def find_chromium() -> str | None:
    """Return the path of the system's Chromium, if it has one."""
    return shutil.which("chromium")


def cache() -> Path:
    """Return a folder for what is fetched once: the user's, or one of tox's."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    for folder in (user / "synapse-federation-admin", REPOSITORY / ".tox" / "fetched"):
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                break
    return folder


def synapse_tests() -> Path:
    """Return the folder that holds the installed Synapse's package `tests`."""
    version = importlib.metadata.version("matrix-synapse")
    target = cache() / f"synapse-tests-{version}"
    if not (target / "tests" / "unittest.py").is_file():
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            unpacked = fetch_synapse_tests(version, Path(folder))
            try:
                unpacked.rename(target)
            except OSError:
                # Another test run was faster.
                assert (target / "tests" / "unittest.py").is_file()
    return target


def fetch_synapse_tests(version: str, folder: Path) -> Path:
    """Unpack `tests` of a Synapse release below a folder, and return what holds it."""
    # pip would build the package to know its metadata, which takes a Rust compiler.
    command = [sys.executable, "-m", "unearth", f"matrix-synapse=={version}"]
    command += ["--no-binary", "--download", str(folder)]
    # Where pip would get it from, and how: as a variable says, or else a file.
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        check=False,
        capture_output=True,
        text=True,
    ).stdout
    keys = re.findall(r"^(global|:env:)\.([a-z-]+)='(.*)'$", listed, re.MULTILINE)
    settings = {key: value for _, key, value in sorted(keys, reverse=True)}
    for key in ("index-url", "trusted-host"):
        for value in settings.get(key, "").split():
            command += [f"--{key}", value]
    proxy, certificates = settings.get("proxy"), settings.get("cert")
    variables = {
        **({"https_proxy": proxy, "http_proxy": proxy} if proxy else {}),
        **({"SSL_CERT_FILE": certificates} if certificates else {}),
    }
    subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **variables}
    )
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as sdist:
        members = [m for m in sdist if m.name.split("/")[1:2] == ["tests"]]
        sdist.extractall(folder, members, filter="data")
    return folder / members[0].name.partition("/")[0]


def start_postgres() -> None:
    """Start a PostgreSQL of our own and have Synapse's harness use it."""
    folder = tempfile.TemporaryDirectory(
        prefix="federation-admin-postgres-", dir=folder_in_memory()
    )
    server = Postgres(Path(folder.name))
    server.__enter__()
    # Not earlier: Synapse's harness drops its database when the interpreter exits.
    atexit.register(folder.cleanup)
    atexit.register(server.__exit__)
    database = server.create_database("federation_admin")
    os.environ.update(
        SYNAPSE_POSTGRES="1",
        SYNAPSE_POSTGRES_HOST=database.host,
        SYNAPSE_POSTGRES_USER=database.user,
        # Synapse's harness makes databases of its own from here.
        SYNAPSE_POSTGRES_DBNAME_FOR_INITIAL_CREATE=database.name,
    )


def folder_in_memory() -> str | None:
    """Return a folder in memory, if there is one with room for PostgreSQL's data.

    Each test has a database of its own, of more than a thousand files. Some disks'
    file systems take a second to make these, and to make them is most of a test's time.
    """
    folder = "/dev/shm"
    if os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > 1 << 30:
        return folder
    return None
