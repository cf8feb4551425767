"""What all tests share: where the captured fixtures are, and which missing parts are failures instead of skips."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import database
from tests.broker import Broker

ROOT = Path(__file__).resolve().parent.parent


def need(name: str, present: bool, reason: str) -> None:
    """Skips with the reason where `name` is absent; fails instead where PUMPLEDGER_REQUIRE names it."""
    if present:
        return
    if name in os.environ.get("PUMPLEDGER_REQUIRE", "").split(","):
        pytest.fail(f"{reason} (PUMPLEDGER_REQUIRE asks for {name})")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder of captured logs."""
    folder = Path(os.environ.get("PUMPLEDGER_FIXTURES", ROOT.parent / "shared" / "fixtures"))
    need("fixtures", folder.is_dir(), f"no captured fixtures at {folder}; set PUMPLEDGER_FIXTURES")
    return folder


@pytest.fixture(scope="session")
def mosquitto() -> str:
    """The path of a real MQTT broker."""
    found = shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    need("mosquitto", found is not None, "no mosquitto on this machine; install it (apt-get install mosquitto)")
    assert found
    return found


@pytest.fixture
def broker(mosquitto: str, tmp_path: Path) -> Iterator[Broker]:
    """A mosquitto of this test's own, listening."""
    folder = tmp_path / "broker"
    folder.mkdir()
    one = Broker(mosquitto, folder)
    one.start()
    yield one
    one.stop(signal.SIGKILL)


@pytest.fixture(scope="session")
def postgres() -> Iterator[database.Postgres]:
    """A PostgreSQL server of the tests' own."""
    binaries, user = database.binaries(), database.owner()
    need("postgres", binaries is not None, "no PostgreSQL server on this machine; install it (apt-get install postgresql)")
    need("postgres", user is not None, "PostgreSQL does not run as root, and there is no user postgres or nobody here")
    assert binaries
    assert user
    one = database.Postgres(binaries, user)
    yield one
    one.stop()
