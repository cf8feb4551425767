"""What holds for the project as a whole: the lock, the rooms, the files that people read first."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.conftest import ROOT

BIN = Path(sys.executable).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = ("requirements.txt", "requirements-airflow.txt", "requirements-dev.txt")

# In pieces, so that this file does not name what it looks for.
REGISTRIES = re.compile(
    r"\b(?:" + "|".join((r"pypi\." + "org", "python" + r"hosted\.org", r"npm" + r"js\.", "debian" + r"\.org")) + r")", re.IGNORECASE
)
INDEX = re.compile(r"(?:--|^)(?:extra-)?" + "index" + r"-url|find" + r"-links\s*=|" + r"^\s*trusted" + "-host", re.MULTILINE)


def committed() -> list[Path]:
    """Every file of the project: tracked, or about to be."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def texts() -> list[tuple[str, str]]:
    """Their names and contents, where they are text."""
    return [(str(file.relative_to(ROOT)), data.decode()) for file in committed() if b"\0" not in (data := file.read_bytes())]


def test_no_file_names_a_package_registry() -> None:
    assert [name for name, text in texts() if REGISTRIES.search(text) or INDEX.search(text)] == []


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_pins_every_package_by_version_and_hash_and_names_no_address(lock: str) -> None:
    text = (ROOT / lock).read_text()
    pins = re.split(r"\n(?=\S)", "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#")))
    assert len(pins) > 20
    assert [pin for pin in pins if not re.match(r"[\w.-]+==\S+[^\n]* \\\n    --hash=sha256:[0-9a-f]{64}", pin)] == []
    assert "://" not in text


@pytest.mark.parametrize(
    ("lock", "needs"),
    [
        ("requirements.txt", PROJECT["project"]["dependencies"]),
        ("requirements-airflow.txt", PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["airflow"]),
        (
            "requirements-dev.txt",
            PROJECT["project"]["dependencies"]
            + PROJECT["project"]["optional-dependencies"]["airflow"]
            + PROJECT["dependency-groups"]["dev"]
            + PROJECT["build-system"]["requires"],
        ),
    ],
)
def test_a_lock_holds_what_pyproject_asks_for(lock: str, needs: list[str]) -> None:
    pinned = _pins(lock)
    for need in map(Requirement, needs):
        versions = pinned.get(canonicalize_name(need.name), set())
        assert versions, f"{lock} lacks {need.name}: run make lock"
        assert all(version in need.specifier for version in versions), (
            f"{lock} has {need.name} {versions}, not {need.specifier}: run make lock"
        )


def test_the_locks_agree() -> None:
    whole = _pins("requirements-dev.txt")
    for lock in LOCKS:
        assert {name: versions for name, versions in _pins(lock).items() if versions - whole.get(name, set())} == {}


def _pins(lock: str) -> dict[str, set[Version]]:
    found: dict[str, set[Version]] = {}
    for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / lock).read_text(), re.MULTILINE):
        found.setdefault(name, set()).add(Version(version))
    return found


def test_the_arrows_between_the_rooms_point_down() -> None:
    done = subprocess.run([BIN / "lint-imports", "--no-logo", "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_an_arrow_that_points_up_is_found(tmp_path: Path) -> None:
    for room in ("dags", "devices", "ingest", "simulators", "transforms"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").touch()
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    kept = {}
    for line in ("", "import ingest", "import simulators", "import time", "from os import environ", "import airflow.sdk"):
        (tmp_path / "transforms" / "sessions.py").write_text(line + "\n")
        done = subprocess.run([BIN / "lint-imports", "--no-logo", "--no-cache"], cwd=tmp_path, capture_output=True, check=False)
        kept[line] = done.returncode == 0
    assert kept.pop("")
    assert not any(kept.values()), kept


def test_dags_are_thin_and_speak_to_airflow_through_its_sdk_alone() -> None:
    files = sorted((ROOT / "dags").glob("*.py"))
    assert files
    for file in files:
        text = file.read_text()
        assert len(text.splitlines()) < 80, f"{file.name}: logic belongs to ingest"
        for node in ast.walk(ast.parse(text)):
            names = (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else []
            )
            assert all(name == "airflow.sdk" for name in names if name.split(".")[0] == "airflow"), f"{file.name}: {names}"


def test_the_version_is_the_changelogs_newest() -> None:
    newest = re.search(r"^## \[?v?(\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest
    assert newest[1] == PROJECT["project"]["version"]


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_every_make_target_that_a_document_names_exists(document: str) -> None:
    named = set(re.findall(r"(?:`|^\s*)make ([a-z]+)\b", (ROOT / document).read_text(), re.MULTILINE))
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"test"} <= named <= targets


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_every_command_that_a_document_names_exists(document: str) -> None:
    import click

    from ingest import cli

    named = set(re.findall(r"(?:`|^\s*(?:\$ )?)(?:\.venv/bin/)?pumpledger ([a-z]+)\b", (ROOT / document).read_text(), re.MULTILINE))
    assert named <= set(cli.main.list_commands(click.Context(cli.main)))


def test_what_documents_link_to_exists() -> None:
    missing = []
    for name, text in texts():
        if name.endswith(".md"):
            for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
                if not (ROOT / name).parent.joinpath(target).exists():
                    missing.append(f"{name}: {target}")
    assert missing == []
