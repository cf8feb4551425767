"""Mutation testing of time, sessions and billing: `python -m tests.mutants --sample N --seed S` (docs/decisions/0023).

A mutant is a module of `MODULES` with one small change of its syntax tree. The suite kills it if the module no longer loads, or if a test
of `TESTS` fails or takes longer than `CPU_S`; what the suite lets pass, the tables kill if any of the same random encounters
(tests/oracle.py) and histories (tests/histories.py) gives another table than the module as it is written, or none in time. The command
gives both scores: that of the suite alone, and that with the tables. Every mutant runs in a forked child that loads our modules anew;
nothing is written to disk. Words are not mutated, nor what loads only (imports, annotations, names of kernels), nor what asserts only
(`assert`, `strict=True`).
"""

from __future__ import annotations

import argparse
import ast
import functools
import gc
import importlib
import importlib.abc
import importlib.machinery
import io
import os
import random
import resource
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
MODULES = (
    "clock", "machine", "grouping", "sessions", "decisions", "orders", "ruleset", "totals", "encounters", "holds", "days", "groups",
    "billing", "worklist",
)  # fmt: skip
"""Those of the room `transforms` that decide what is billed; a name without a file is passed over."""

TESTS = ("tests/transforms",)
LONG = (
    "test_compiled_and_plain_kernels_give_the_same_bytes",
    "test_late_data_never_leaves_a_changed_line_ready_or_as_if_it_stood",
    "test_a_release_followed_by_nothing_new_amends_nothing",
)
"""Left out: many seconds each, and about what the others show one by one."""

SEED, OFTEN, OF, HISTORIES = 20260302, 5, 3000, 30
"""Of so many encounters those are taken that meet one of the first so many of a fault or boundary; and so many histories."""

CPU_S = 60
"""A child that has used so many seconds of a processor for the suite, or after that for the tables, does not end."""
PASSED = "the suite passes\n"

# --- the changes ----------------------------------------------------------------------------------------------------------------

_COMPARED: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
}  # fmt: skip
_RECKONED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div, ast.Mod: ast.Mult,
    ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
}  # fmt: skip
_OPPOSITE = {"minimum": "maximum", "maximum": "minimum", "equal": "not_equal", "not_equal": "equal", "and_": "or_", "or_": "and_"}
"""What stands instead of a function of arrays whose two arguments it would be no change to exchange."""
_CALLED = {"min": "max", "max": "min", "any": "all", "all": "any", "sorted": "list"}


@dataclass(frozen=True)
class Change:
    """One change of a module: where, what in words, and what makes it in the tree that it was found in."""

    module: str
    line: int
    said: str
    number: int
    make: Callable[[], None]


def source_of(module: str) -> Path:
    """The file of a module of ours."""
    return ROOT / f"{module.replace('.', '/')}.py"


def changes(module: str, tree: ast.Module) -> Iterator[Change]:
    """Every change of a module, in the order of its text: the same for equal text."""
    number = 0
    for holder, name, place, node in _nodes(tree):
        for said, new in _instead(node):

            def make(holder: ast.AST = holder, name: str = name, place: int | None = place, new: ast.AST = new) -> None:
                if place is None:
                    setattr(holder, name, new)
                else:
                    getattr(holder, name)[place] = new

            yield Change(module, getattr(node, "lineno", 0) or node.target.lineno, said, number, make)
            number += 1


def _nodes(holder: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """Every node that runs, with where it hangs."""
    for name, value in ast.iter_fields(holder):
        if name in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for place, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(node, ast.AST) and not _changes_nothing(node):
                yield holder, name, place, node
                yield from _nodes(node)


def _changes_nothing(node: ast.AST) -> bool:
    """Whether it loads only, or asserts only."""
    match node:
        case ast.Import() | ast.ImportFrom() | ast.Assert() | ast.keyword(arg="strict"):
            return True
        case ast.Expr(value=ast.Constant()) | ast.BinOp(op=ast.BitOr(), right=ast.Constant(value=None)):
            return True
        case ast.Assign(targets=[ast.Name(id=name)]):
            return name in ("__all__", "KERNELS", "Reach", "Ints", "Floats", "_Row")
    return False


def _instead(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What can stand instead of a node, in words and as a node."""

    def as_said(new: ast.AST) -> tuple[str, ast.AST]:
        return f"{_short(node)} → {_short(new)}", ast.fix_missing_locations(ast.copy_location(new, node))

    match node:
        case ast.Compare(left=left, ops=ops, comparators=right):
            for place, op in enumerate(ops):
                for other in _COMPARED[type(op)]:
                    yield as_said(ast.Compare(left, [*ops[:place], other(), *ops[place + 1 :]], right))
        case ast.BinOp(left=one, op=op, right=other):
            if type(op) in _RECKONED:
                yield as_said(ast.BinOp(one, _RECKONED[type(op)](), other))
        case ast.BoolOp(op=op, values=values):
            yield as_said(ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values))
            for place in range(len(values)):
                left_over = values[:place] + values[place + 1 :]
                yield as_said(left_over[0] if len(left_over) == 1 else ast.BoolOp(op, left_over))
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert(), operand=operand):
            yield as_said(operand)
        case ast.Constant(value=bool() as value):
            yield as_said(ast.Constant(not value))
        case ast.Constant(value=int() | float() as value):
            yield as_said(ast.Constant(value + 1))
            yield as_said(ast.Constant(value - 1))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=named) if name in _CALLED:
            kept = [] if name == "sorted" else named
            yield as_said(ast.Call(ast.Name(_CALLED[name], ast.Load()), args, kept))
        case ast.Call(func=ast.Attribute(value=of, attr=name), args=[_, _] as args) if name in _OPPOSITE:
            yield as_said(ast.Call(ast.Attribute(of, _OPPOSITE[name], ast.Load()), args, node.keywords))
        case ast.Call(func=func, args=[first, second, *more], keywords=named) if not any(isinstance(a, ast.Starred) for a in node.args[:2]):
            yield as_said(ast.Call(func, [second, first, *more], named))
        case ast.Return(value=ast.expr() as value) if not (isinstance(value, ast.Constant) and value.value in (None, False)):
            yield as_said(ast.Return(ast.Constant(None)))
        case ast.AugAssign(target=target, op=op, value=value):
            if type(op) in _RECKONED:
                yield as_said(ast.AugAssign(target, _RECKONED[type(op)](), value))
            yield as_said(ast.Pass())
        case ast.Assign(targets=[ast.Subscript() | ast.Attribute(), *_]) | ast.Expr(value=ast.Call()) | ast.Continue() | ast.Break():
            yield as_said(ast.Pass())
        case ast.If(test=test, body=body, orelse=orelse):
            for always in (True, False):
                said = f"if {_short(test)} → if {always}"
                yield said, ast.copy_location(ast.If(ast.copy_location(ast.Constant(always), test), body, orelse), node)
        case ast.IfExp(body=body, orelse=orelse):
            yield as_said(body)
            yield as_said(orelse)
        case ast.comprehension(target=target, iter=every, ifs=[_, *_] as ifs, is_async=is_async):
            for place, test in enumerate(ifs):
                yield f"for … if {_short(test)} → for …", ast.comprehension(target, every, ifs[:place] + ifs[place + 1 :], is_async)


def _short(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 90 else f"{text[:60]} … {text[-27:]}"


# --- one mutant -----------------------------------------------------------------------------------------------------------------


class _Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads one module from other code than that of its file."""

    def __init__(self, module: str, code: CodeType) -> None:
        self.module, self.code = module, code

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> importlib.machinery.ModuleSpec | None:
        if name != self.module:
            return None
        return importlib.machinery.ModuleSpec(name, self, origin=str(source_of(name)))

    def exec_module(self, module: ModuleType) -> None:
        exec(self.code, module.__dict__)


def compiled(module: str, number: int | None) -> CodeType:
    """A module with one of its changes."""
    tree = ast.parse(source_of(module).read_text())
    if number is not None:
        next(change for change in changes(module, tree) if change.number == number).make()
    return compile(tree, str(source_of(module)), "exec")


def _ours_anew() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("transforms", "ingest", "tests")]:
        del sys.modules[name]


def _loaded(tests: Sequence[str]) -> None:
    """Loads what others wrote and these tests use, so that no child has to: half of the time of a mutant that is soon killed."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        pytest.main([*(str(ROOT / one) for one in tests), "-q", "--collect-only", "-p", "no:cacheprovider", "-p", "no:xdist"])
    gc.collect()
    gc.freeze()


def chosen() -> list[int]:
    """The numbers of encounters that together meet every fault and boundary `OFTEN` times."""
    oracle, met, found = importlib.import_module("tests.oracle"), Counter[str](), []
    for n in range(OF):
        hit = {name for name, times in oracle.random_encounter(random.Random(f"{SEED}:{n}")).hit.items() if times}
        if any(met[name] < OFTEN for name in hit):
            met.update(hit)
            found.append(n)
    return found


def given(numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The tables of each encounter, as it is billed by time and by another rule set, and of each history."""
    kit, oracle, histories = (importlib.import_module(f"tests.{name}") for name in ("kit", "oracle", "histories"))
    for n in numbers:
        encounter = oracle.random_encounter(random.Random(f"{SEED}:{n}"))
        logs: dict[str, list[Any]] = {}
        for capture in encounter.captures:
            one = capture.capture()
            logs.setdefault(one.pump_id, []).append(one)
        other = "evidence-only" if n % 4 == 3 else "per-diem"
        read = [kit.assembled(mine) for mine in logs.values()]
        found: dict[str, Any] = {}
        for name in ("", other):
            one = kit.billed(read, kit.orders(*encounter.orders, **({"rule_set": name} if name else {})))
            found |= {f"{table} {name}".strip(): rows for table, rows in one.facts.items() if not name}
            found |= {f"{table} {name}".strip(): getattr(one.bill, table) for table in ("lines", "worklist", "days")}
        yield found
    for n in range(HISTORIES):
        history, _ = histories.history(SEED, n)
        one = kit.billed([history.log()], history.orders)
        yield {**one.facts, "lines": one.bill.lines, "worklist": one.bill.worklist, "days": one.bill.days}


def by_suite(module: str, number: int | None, tests: Sequence[str], likely: Sequence[str] = ()) -> str:
    """What of these tests kills a mutant; empty if nothing does. In a process of its own, which has the mutant from here on.

    `likely` are names of tests that are run before the others, in this order.
    """
    _ours_anew()
    try:
        sys.meta_path.insert(0, _Changed(module, compiled(module, number)))
        importlib.import_module("tests.kit")
        importlib.import_module(module)
    except Exception as error:
        return f"does not load: {type(error).__name__}"
    failed = _First(likely)
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", " and ".join(f"not {name}" for name in LONG)]
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        ended = pytest.main([*(str(ROOT / one) for one in tests), *options], plugins=[failed])
    return failed.name or ("" if ended == pytest.ExitCode.OK else f"test: pytest ends with {ended}")


def by_tables(numbers: Sequence[int], right: Sequence[dict[str, Any]]) -> str:
    """Which table differs from that of the modules as they are written; empty if none does."""
    try:
        for n, (found, expected) in enumerate(zip(given(numbers), right, strict=True)):
            for table, rows in found.items():
                if not rows.equals(expected[table]):
                    return f"tables: {table} of {n}"
    except Exception as error:
        return f"tables: {type(error).__name__}"
    return ""


class _First:
    """The first test that fails; those that likely do are run first, the others of all files mixed: what kills is often in one file."""

    def __init__(self, likely: Sequence[str]) -> None:
        self.name = ""
        self._place = {name: place for place, name in reversed(list(enumerate(likely)))}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        random.Random(len(items)).shuffle(items)
        items.sort(key=lambda item: self._place.get(item.name, len(self._place)))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.name:
            self.name = f"test: {report.nodeid.partition('::')[2]}"

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and not self.name:
            self.name = f"test: {report.nodeid} does not load"


def apart(module: str, number: int | None, tests: Sequence[str], compare: Callable[[], str] | None, likely: Sequence[str] = ()) -> str:
    """What kills a mutant, in a forked child: the suite, else `compare` where it is given; empty if nothing does."""
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        os.close(reads)
        try:
            _limited()
            said = by_suite(module, number, tests, likely)
            if not said and compare is not None:
                os.write(writes, PASSED.encode())
                _limited()
                said = compare()
        except BaseException as error:
            said = f"stopped: {type(error).__name__}"
        finally:
            os.write(writes, said.encode()[:4000])
            os._exit(0)
    os.close(writes)
    with os.fdopen(reads, "rb") as pipe:
        before, passed, said = pipe.read().decode().rpartition(PASSED)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        said = "does not end" if name == "SIGXCPU" else f"died of {name}"
        return f"tables: {said}" if passed else f"test: {said}"
    return said or before


def _limited() -> None:
    """Ends this process once it has used `CPU_S` more."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    most = int(used.ru_utime + used.ru_stime) + CPU_S
    resource.setrlimit(resource.RLIMIT_CPU, (most, resource.getrlimit(resource.RLIMIT_CPU)[1]))


# --- the command ----------------------------------------------------------------------------------------------------------------


def sampled(every: dict[str, list[Change]], count: int, seed: int) -> list[Change]:
    """So many changes, from each module in proportion to all that it has."""
    whole = sum(map(len, every.values()))
    found = []
    for module, mine in every.items():
        wanted = min(len(mine), round(count * len(mine) / whole)) if count else len(mine)
        found += sorted(random.Random(f"{seed}:{module}").sample(mine, wanted), key=lambda change: change.number)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    there = [name for name in MODULES if source_of(f"transforms.{name}").exists()]
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants", description="Mutants of time, sessions and billing, and who kills them."
    )
    parser.add_argument("--sample", type=int, default=300, help="so many of all mutants (0: all, which takes hours)")
    parser.add_argument("--seed", type=int, default=1, help="of the sample")
    parser.add_argument("--module", action="append", choices=there, help="these modules only")
    parser.add_argument("--line", type=int, action="append", help="mutants of these lines only")
    parser.add_argument("--tests", action="append", help="these files of tests instead of those of tests/transforms")
    parser.add_argument("--suite", action="store_true", help="do not compare tables")
    parser.add_argument("--verbose", action="store_true", help="say of each what killed it")
    asked = parser.parse_args(arguments)
    settings.register_profile("mutants", database=None, derandomize=True, deadline=None)
    settings.load_profile("mutants")
    sys.path.insert(0, str(ROOT))
    names = [f"transforms.{name}" for name in there if not asked.module or name in asked.module]
    every = {name: list(changes(name, ast.parse(source_of(name).read_text()))) for name in names}
    if asked.line:
        every = {name: [change for change in mine if change.line in asked.line] for name, mine in every.items()}
    taken = sampled(every, asked.sample, asked.seed)
    tests = asked.tests or TESTS
    begun = time.monotonic()
    _loaded(tests)
    compare = None
    if not asked.suite:
        numbers = chosen()
        compare = functools.partial(by_tables, numbers, list(given(numbers)))
    unchanged = apart(names[0], None, tests, compare)
    if unchanged:
        print(f"the modules as they are written do not pass: {unchanged}")
        return 2
    of, suite, tables, by = Counter[str](), Counter[str](), Counter[str](), defaultdict[str, Counter[str]](Counter)
    for change in taken:
        before = [by[change.module], sum(by.values(), Counter())]
        why = apart(change.module, change.number, tests, compare, [name for one in before for name, _ in one.most_common()])
        if why.startswith("test: "):
            by[change.module][why.removeprefix("test: ")] += 1
        of[change.module] += 1
        suite[change.module] += bool(why) and not why.startswith("tables")
        tables[change.module] += why.startswith("tables")
        where = f"{source_of(change.module).relative_to(ROOT)}:{change.line}"
        if not why:
            print(f"survived  {where}  {change.said}", flush=True)
        elif asked.verbose or why.startswith("tables"):
            print(f"killed    {where}  {change.said}  by {why}", flush=True)
    print(f"\nsample {asked.sample}, seed {asked.seed}; {time.monotonic() - begun:.0f} s")
    print(f"{'module':24} {'mutants':>8} {'taken':>6} {'by the suite':>18}" + ("" if asked.suite else f" {'and by tables':>18}"))
    for name in (*(name for name in names if of[name]), "all"):
        whole = name == "all"
        n, first, more = (sum(c.values()) if whole else c[name] for c in (of, suite, tables))
        mutants = sum(map(len, every.values())) if whole else len(every[name])
        shown = [first] if asked.suite else [first, first + more]
        print(f"{name:24} {mutants:8} {n:6} " + " ".join(f"{killed:9} {killed / max(1, n):8.1%}" for killed in shown))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
