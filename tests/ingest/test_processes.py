"""Work over several processes gives what it gives in one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from ingest import night, views
from ingest.lake import Lake
from ingest.processes import each, processors
from tests.kit import anchor, capture, infusion, numbered
from tests.test_proof import order_file, put


def square(number: int) -> tuple[int, int]:
    if number < 0:
        raise ValueError(f"{number} is below 0")
    return number * number, os.getpid()


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_the_order_of_the_things(processes: int) -> None:
    found = list(each(square, range(20), processes=processes))
    assert [result for result, _ in found] == [number * number for number in range(20)]
    assert (os.getpid() in {pid for _, pid in found}) == (processes == 1)


def test_one_thing_is_done_in_this_process() -> None:
    assert list(each(square, [3])) == [(9, os.getpid())]
    assert list(each(square, [])) == []


@pytest.mark.parametrize("processes", [1, 2])
def test_what_the_work_raises_is_raised(processes: int) -> None:
    with pytest.raises(ValueError, match="-1 is below 0"):
        list(each(square, [1, -1, 2], processes=processes))


def test_processes_of_our_own_do_without_pandas() -> None:
    assert list(each(_has_pandas, range(2), processes=2)) == [False, False]
    command = [sys.executable, "-c", "from ingest.__main__ import main; main()", "sessions", "--lake", "none"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"})
    assert "pyarrow.lib" in done.stderr
    assert "pandas._libs" not in done.stderr


def _has_pandas(_: int) -> bool:
    return "pandas" in sys.modules


def test_there_is_a_processor() -> None:
    assert processors() >= 1


def test_processes_end_with_the_one_that_started_them() -> None:
    began = subprocess.Popen([sys.executable, "-c", _WAITING], stdout=subprocess.PIPE, text=True)
    assert began.stdout is not None
    workers = {int(began.stdout.readline()) for _ in range(2)}
    began.kill()
    began.wait()
    until = time.monotonic() + 30
    while running(workers) and time.monotonic() < until:
        time.sleep(0.05)
    assert not running(workers)


def running(workers: set[int]) -> set[int]:
    """Those that still run; one that ended and that nobody asked for yet does not."""
    found = set()
    for pid in workers:
        with suppress(OSError):
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            found |= {pid} if state != "Z" else set()
    return found


def wait(_: int) -> None:
    print(os.getpid(), flush=True)
    time.sleep(600)


_WAITING = """
from ingest.processes import each
from tests.ingest.test_processes import wait
if __name__ == "__main__":
    list(each(wait, [1, 2, 3], processes=2))
"""


def test_a_night_over_several_processes_derives_what_it_does_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def derived(folder: Path) -> dict[str, list[dict[str, object]]]:
        folder.mkdir()
        captures = [capture(numbered(infusion(0, 95)), anchor=anchor(200), pump=f"canonical:{n}") for n in range(6)]
        root = folder / "lake"
        night.open_lake(root, buckets=4)
        put(root, captures)
        night.nightly(root, orders_file=order_file(folder))
        return {name: views.select(Lake.open(root), name).to_pylist() for name in ("sessions", "lines", "worklist")}

    alone = derived(tmp_path / "alone")
    monkeypatch.setattr(night, "_MANY", 0)
    monkeypatch.setattr(night, "processors", lambda: 2)
    assert derived(tmp_path / "several") == alone
    assert alone["sessions"]
