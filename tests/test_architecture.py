# SPDX-License-Identifier: Apache-2.0
"""The rules about which part of the package may use what."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "synapse_federation_admin"
REPOSITORY = PACKAGE.parent

# What the rooms may import of each other: nothing imports upwards or sideways.
BELOW = {"homeserver", "failures", "storage", "destinations"}
ROOMS = {
    "homeserver": set(),
    "failures": {"homeserver"},
    "storage": BELOW,
    "destinations": BELOW,
    "history": BELOW,
    "repair": BELOW | {"config"},
    "diagnosis": BELOW,
    "api": BELOW | {"config", "history", "repair", "diagnosis"},
    "playground": set(),
}

FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def named(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", FILES, ids=named)
def test_private_synapse(path: Path) -> None:
    """Only the room `homeserver` uses of Synapse what is not its module API."""
    if path.parent.name == "homeserver":
        return
    for module in imports(path):
        if module.partition(".")[0] == "synapse":
            assert module.startswith("synapse.module_api"), module
    assert "._hs" not in path.read_text()


@pytest.mark.parametrize("path", FILES, ids=named)
def test_rooms(path: Path) -> None:
    """Rooms import downwards only."""
    room = path.relative_to(PACKAGE).parts[0]
    for module in imports(path):
        parts = module.split(".")
        if room in ROOMS and parts[0] == PACKAGE.name and len(parts) > 1:
            assert parts[1] in ROOMS[room] | {room}, module


@pytest.mark.parametrize("path", FILES, ids=named)
def test_no_asyncio(path: Path) -> None:
    """Nothing uses asyncio: Synapse runs on Twisted."""
    assert "asyncio" not in set(imports(path))


@pytest.mark.parametrize(
    "path",
    [*FILES, *(REPOSITORY / "tests").rglob("*.py")],
    ids=lambda path: str(path.relative_to(REPOSITORY)),
)
def test_licence(path: Path) -> None:
    """Every file begins with its licence."""
    assert path.read_text().startswith("# SPDX-License-Identifier: Apache-2.0\n")
