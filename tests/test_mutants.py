"""The command that makes mutants (docs/decisions/0023): what it changes, which it takes, and what it says of them."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import mutants

ROOT = Path(__file__).resolve().parent.parent

WRITTEN = '''
import os
LIMIT: int | None = 3
__all__ = ["f"]

def f(x: int, y: int = 0) -> int | None:
    """Words are not changed: 1 < 2."""
    if not x < LIMIT and y:
        return max(x, y) + 1
    x += 2
    g(x, y)
    return None
'''


def texts(written: str) -> list[tuple[int, str, str]]:
    """Of each change of a text its line, what is said of it, and the text with it."""
    found = []
    for number in range(len(list(mutants.changes("m", ast.parse(written))))):
        tree = ast.parse(written)
        change = next(one for one in mutants.changes("m", tree) if one.number == number)
        change.make()
        found.append((change.line, change.said, ast.unparse(tree)))
    return found


def test_every_change_changes_one_thing_that_runs():
    found = texts(WRITTEN)
    whole = ast.unparse(ast.parse(WRITTEN)).splitlines()
    assert len({text for _, _, text in found}) == len(found) == 23
    for line, said, text in found:
        differ = [n for n, (old, new) in enumerate(zip(whole, text.splitlines(), strict=True)) if old != new]
        assert len(differ) == 1, (line, said)
        compile(text, "m", "exec")
    assert {line for line, _, _ in found} == {3, 6, 8, 9, 10, 11}
    said = {what for _, what, _ in found}
    assert {"x < LIMIT → x <= LIMIT", "x < LIMIT → x >= LIMIT", "max(x, y) → min(x, y)", "g(x, y) → g(y, x)", "g(x, y) → pass"} <= said
    assert {"not x < LIMIT → x < LIMIT", "if not x < LIMIT and y → if True", "x += 2 → x -= 2", "0 → 1", "0 → -1"} <= said


def test_what_it_would_be_no_change_to_exchange_is_told_the_opposite_instead():
    assert [what for _, what, _ in texts("import numpy as np\nx = np.minimum(a, b)\n")] == ["np.minimum(a, b) → np.maximum(a, b)"]
    assert [what for _, what, _ in texts("x = pc.equal(a, b)\n")] == ["pc.equal(a, b) → pc.not_equal(a, b)"]


def test_a_sample_is_of_each_module_in_proportion_and_of_its_seed_alone():
    every = {name: [mutants.Change(name, n, "", n, lambda: None) for n in range(size)] for name, size in (("a", 300), ("b", 100), ("c", 3))}

    def taken(count: int, seed: int) -> list[tuple[str, int]]:
        return [(one.module, one.number) for one in mutants.sampled(every, count, seed)]

    assert [sum(name == one for name, _ in taken(40, 1)) for one in "abc"] == [30, 10, 0]
    assert taken(40, 1) == taken(40, 1) != taken(40, 2)
    assert len(set(taken(0, 1))) == len(taken(0, 1)) == 403


def command(*arguments: str) -> str:
    said = subprocess.run(
        [sys.executable, "-m", "tests.mutants", *arguments], cwd=ROOT, capture_output=True, text=True, check=False,
        env={name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV"))},
    )  # fmt: skip
    return f"{said.returncode}\n{said.stdout}{said.stderr}"


def test_the_command_tells_what_the_suite_kills_what_it_does_not_and_the_share():
    only = ["--module", "totals", "--suite", "--line"]
    (line,) = [n for n, text in enumerate((ROOT / "transforms/totals.py").read_text().splitlines(), 1) if "0.02" in text]
    found = command(*only, str(line), "--sample", "2", "--verbose", "--tests", "tests/transforms/test_totals.py")
    assert found.startswith("0\n"), found
    assert "killed    transforms/totals.py" in found
    assert "by test: test_totals_disagree_where_they_differ_by_more_than_half_a_unit_and_two_percent" in found
    *_, shown, whole = found.splitlines()
    assert shown.startswith("transforms.totals")
    assert whole.split()[0] == "all"
    kept = command(*only, str(line), "--tests", "tests/transforms/test_orders.py", "--sample", "1")
    assert "survived  transforms/totals.py" in kept
    assert kept.splitlines()[-1].split()[-2:] == ["0", "0.0%"]


def test_a_module_without_a_file_and_tests_that_fail_by_themselves_are_refused(tmp_path: Path):
    (tmp_path / "test_never.py").write_text("def test_never():\n    assert False\n")
    assert "invalid choice" in command("--module", "nothing")
    found = command("--module", "totals", "--suite", "--tests", str(tmp_path / "test_never.py"))
    assert found.startswith("2\nthe modules as they are written do not pass: test: test_never")


@pytest.mark.parametrize("name", [name for name in mutants.MODULES if mutants.source_of(f"transforms.{name}").exists()])
def test_every_module_is_found_and_has_changes(name: str):
    assert next(mutants.changes(name, ast.parse(mutants.source_of(f"transforms.{name}").read_text())))
