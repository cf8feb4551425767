"""The kernels compiled and as they are written: one function, two ways to run it, one result."""

from __future__ import annotations

import random
import types
from pathlib import Path

import pytest

from tests import kit, oracle
from transforms import compiled
from transforms.block import Block
from transforms.sessions import FactPolicy, derive, derive_all


def test_compiled_and_plain_kernels_give_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    logs = [oracle.random_encounter(random.Random(f"compiled:{n}")) for n in range(40)]

    def derived() -> list[dict[str, bytes]]:
        return [kit.give(*(taken.capture() for taken in one.captures), known=kit.orders(*one.orders)).bytes() for one in logs]

    plain = derived()
    monkeypatch.setattr(compiled, "ROWS", 0)
    assert derived() == plain


def test_a_block_of_many_logs_gives_what_each_gives_alone() -> None:
    known, logs = kit.orders(), []
    for n in range(30):
        taken = oracle.random_encounter(random.Random(f"block:{n}")).captures
        logs.append(kit.assembled([one.capture() for one in taken if one.header["pump_id"] == taken[0].header["pump_id"]]))
    pumps = [log.events["pump_id"][0].as_py() for log in logs]
    whole = derive_all(Block.of(pumps, logs), known, FactPolicy())
    alone = [derive(log, known, FactPolicy()) for log in logs]
    for name in ("events", "sessions", "intervals", "setups", "doubts"):
        rows = sorted(str(row) for one in alone for row in getattr(one, name).to_pylist())
        assert sorted(str(row) for row in getattr(whole, name).to_pylist()) == rows, name


def test_a_kernel_kept_on_disk_is_compiled_anew_once_a_constant_of_another_module_has_changed(tmp_path: Path) -> None:
    file = tmp_path / "kernels.py"
    file.write_text("def run(one):\n    return one + FROM_ELSEWHERE\n\nKERNELS, LEAN = ('run',), ()\n")

    def given(value: int) -> int:
        module = types.ModuleType("kernels")
        module.__dict__["FROM_ELSEWHERE"] = value
        exec(compile(file.read_text(), str(file), "exec"), module.__dict__)
        return int(compiled.Kernels(module, compiled.ROWS).run(1))

    assert [given(1), given(2), given(1)] == [2, 3, 2]
