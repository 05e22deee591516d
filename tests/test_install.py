# SPDX-License-Identifier: Apache-2.0
"""The wheel, in environments laid out as those of operators, and the files to take."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import yaml
from deadlines import SOON_S

from synapse_federation_admin import __version__
from synapse_federation_admin.playground.certificates import CertificateAuthority
from synapse_federation_admin.playground.configuration import (
    MAIN,
    Layout,
    write_configuration,
)
from synapse_federation_admin.playground.processes import ChildProcess, wait_until

pytestmark = pytest.mark.one_synapse

REPOSITORY = Path(__file__).parent.parent
CONTRIB = REPOSITORY / "contrib"
PACKAGE = "synapse_federation_admin"
WHEEL = f"{PACKAGE}-{__version__}-py3-none-any.whl"

Install = Callable[[Path, Path], dict[str, str]]


def build(target: str, folder: Path) -> Path:
    """Build a wheel or a source distribution of this checkout."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d"]
    subprocess.run(
        [*command, str(folder)], cwd=REPOSITORY, check=True, capture_output=True
    )
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


def pip(folder: Path, *arguments: str | Path) -> str:
    """Run the pip of an environment, without any index."""
    return subprocess.run(
        [folder / "bin/python", "-m", "pip", *arguments],
        env={**os.environ, "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def with_pip(folder: Path, wheel: Path) -> dict[str, str]:
    """As in a virtual environment, the Debian packages, YunoHost, and an image."""
    pip(folder, "install", "--no-deps", wheel)
    return {}


def on_python_path(folder: Path, wheel: Path) -> dict[str, str]:
    """As an init container does it."""
    pip(folder, "install", "--no-deps", "--target", folder / "volume", wheel)
    return {"PYTHONPATH": str(folder / "volume")}


def without_metadata(folder: Path, wheel: Path) -> dict[str, str]:
    """As the package's folder alone, mounted into site-packages."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "unpacked")
    shutil.move(folder / "unpacked" / PACKAGE, site_packages(folder) / PACKAGE)
    return {}


def site_packages(folder: Path) -> Path:
    (found,) = folder.glob("lib/python*/site-packages")
    return found


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A virtual environment in which there is Synapse, and nothing of this module.

    What this one has is linked to there, rather than installed once more.
    """
    folder = tmp_path / "env"
    venv.create(folder, with_pip=False, symlinks=True)
    there = site_packages(folder)
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if PACKAGE not in path.name and not path.name.startswith("__editable__"):
            (there / path.name).symlink_to(path)
    return folder


def found(folder: Path, **variables: str) -> Path | None:
    """Return where an environment has the module."""
    code = f"import importlib.util as i; print(i.find_spec('{PACKAGE}'))"
    said = subprocess.run(
        [folder / "bin/python", "-c", code],
        env={**os.environ, **variables},
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    origin = re.search(r"origin='([^']+)'", said)
    return Path(origin[1]) if origin else None


@pytest.mark.e2e
@pytest.mark.parametrize(
    "install", [with_pip, on_python_path, without_metadata], ids=lambda f: f.__name__
)
def test_starts(
    install: Install, environment: Path, wheel: Path, tmp_path: Path
) -> None:
    """Synapse starts with the module from there, and its pages are there."""
    assert found(environment) is None
    variables = install(environment, wheel)
    file = found(environment, **variables)
    assert file is not None
    assert file.is_relative_to(environment)
    folder = tmp_path / "synapse"
    folder.mkdir()
    layout = Layout.choose("127.0.0.1", workers=False)
    write_configuration(
        folder,
        layout,
        CertificateAuthority(folder),
        registration_secret="secret",
        module_config={},
    )
    homeserver = ["-m", "synapse.app.homeserver", "-c", str(folder / "homeserver.yaml")]

    process = ChildProcess(
        "synapse",
        [str(environment / "bin/python"), *homeserver],
        output=folder / "synapse.out",
        folder=folder,
        environment={**os.environ, **variables},
    )
    process.start()
    try:
        url = f"http://127.0.0.1:{layout.client_ports[MAIN]}"

        def answers() -> bool:
            process.check_running()
            try:
                return httpx.get(f"{url}/health").is_success
            except httpx.TransportError:
                return False

        wait_until(answers, "Synapse answers", timeout_s=SOON_S)
        page = httpx.get(f"{url}/_synapse/admin/federation/", follow_redirects=True)
        style = re.findall(r'"([^"]+\.css)"', page.text)
        assert "<h1>Sign in</h1>" in page.text
        assert httpx.get(page.url.join(style[0])).is_success
        status = httpx.get(f"{url}/_synapse/admin/v2/federation/status")
        assert status.json()["errcode"] == "M_MISSING_TOKEN"
    finally:
        process.stop()


@pytest.mark.e2e
def test_gone(environment: Path, tmp_path: Path) -> None:
    """Where the module is gone, Synapse does not start, and says what docs/install.md
    says."""
    config = tmp_path / "homeserver.yaml"
    module = {"module": f"{PACKAGE}.FederationAdmin", "config": {}}
    settings = {"server_name": "x.test", "report_stats": False, "modules": [module]}
    config.write_text(yaml.safe_dump(settings))

    done = subprocess.run(
        [environment / "bin/python", "-m", "synapse.app.homeserver", "-c", config],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
    )

    last = done.stderr.splitlines()[-1]
    assert done.returncode != 0
    assert last in (REPOSITORY / "docs/install.md").read_text()
    assert last.startswith("ModuleNotFoundError")


def test_synapse_stays(environment: Path, wheel: Path) -> None:
    """pip would install nothing but the module: not even without `--no-deps`."""
    said = pip(environment, "install", "--dry-run", wheel)

    would = [line for line in said.splitlines() if line.startswith("Would install")]
    assert would == [f"Would install synapse-federation-admin-{__version__}"]


def test_wheel(wheel: Path, tmp_path: Path) -> None:
    """The wheel has the package and its metadata, each file that is in the repository,
    and nothing else; a second build is the same to the byte."""
    in_repository = {
        path.relative_to(REPOSITORY).as_posix()
        for path in (REPOSITORY / PACKAGE).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    metadata = f"{PACKAGE}-{__version__}.dist-info"

    assert wheel.name == WHEEL
    assert names - in_repository == {
        f"{metadata}/{name}"
        for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt")
    }
    assert in_repository - names == set()
    assert build("wheel", tmp_path).read_bytes() == wheel.read_bytes()


def test_source_distribution(tmp_path: Path) -> None:
    """The source distribution has what is needed to build, test and read it."""
    with tarfile.open(build("sdist", tmp_path)) as archive:
        top = {Path(name).parts[1] for name in archive.getnames()}

    assert top - {".gitignore", "PKG-INFO"} == {
        *("CHANGELOG.md", "README.md", "bench", "contrib", "docs", "media"),
        *("mkdocs.yml", "pyproject.toml", PACKAGE, "tests", "tox.ini"),
    }


def test_names() -> None:
    """Where the wheel is named, it is by the name that it has."""
    text = "".join(
        path.read_text()
        for path in [REPOSITORY / "docs/install.md", *CONTRIB.rglob("*.*")]
    )

    assert set(re.findall(rf"{PACKAGE}-[^ /*]+\.whl", text)) == {WHEEL}


@pytest.mark.parametrize(
    "path", sorted(CONTRIB.rglob("*.y*ml")), ids=lambda path: path.parent.name
)
def test_yaml(path: Path) -> None:
    """The snippets are YAML, and enable the module as README does."""
    text = path.read_text()
    data = yaml.safe_load(text)

    modules = {
        "ansible": lambda: data["matrix_synapse_modules"],
        "ess": lambda: yaml.safe_load(
            data["synapse"]["additional"]["federation-admin"]["config"]
        )["modules"],
    }
    if path.parent.name in modules:
        assert modules[path.parent.name]() == [
            {"module": f"{PACKAGE}.FederationAdmin", "config": {}}
        ]
