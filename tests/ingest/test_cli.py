"""The command line as its users type it: what it prints, what it leaves, its exit codes."""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import pkgutil
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import click
import pyarrow.parquet as pq
import pytest

from ingest import cli, commands
from tests.broker import PATIENCE_S
from tests.kit import anchor, capture, event, infusion, new_setup, numbered
from tests.test_proof import order_file
from transforms import tables


def run(*arguments: object, ok: int = 0, cwd: Path | None = None) -> str:
    """Runs `pumpledger` with these arguments, checks its exit code, and gives both streams."""
    done = subprocess.run(
        [sys.executable, "-m", "ingest.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "160"},
        check=False,
    )
    assert done.returncode == ok, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def some_logs(folder: Path) -> Path:
    lines = numbered([*new_setup(-5), *infusion(0, 95), event(100, "other")])
    (folder / "a.jsonl").write_bytes(capture(lines, anchor=anchor(120)).data)
    order_file(folder)
    return folder


def a_lake(logs: Path) -> Path:
    run("load", logs / "a.jsonl", "--lake", logs / "lake")
    run("nightly", "--orders", logs / "orders.csv", "--lake", logs / "lake")
    return logs / "lake"


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return some_logs(tmp_path)


@pytest.fixture
def lake(logs: Path) -> Path:
    return a_lake(logs)


def test_load_nightly_lines_and_explain(logs, lake):
    (first, second) = json.loads(run("lines", "--format", "json", "--lake", lake))
    assert set(first) == set(tables.LINES.names)
    assert {first["code"]: first["units"], second["code"]: second["units"]} == {"96369": 1, "96370": 1}
    assert "96370" in run("lines", "--lake", lake)
    told = run("explain", first["line_id"], "--lake", lake)
    assert b'"kind": "delivery_stop"'.hex(" ") in told
    assert json.loads(run("explain", first["line_id"], "--json", "--lake", lake))
    run("explain", first["line_id"], "--html", logs / "line.html", "--lake", lake)
    assert "<svg" in (logs / "line.html").read_text()


def test_loading_the_same_file_again_is_known(logs, lake):
    assert json.loads(run("load", logs / "a.jsonl", "--lake", lake, "--json"))["known"] == 1
    page = json.loads(run("nightly", "--lake", lake, "--json"))
    assert (page["changed"], page["ready"]) == (0, 2)


def test_a_night_says_which_orders_it_used_and_since_when_it_has_kept_them(logs, lake):
    named = json.loads(run("nightly", "--orders", logs / "orders.csv", "--lake", lake, "--json"))["orders"]
    assert named == {"file": str(logs / "orders.csv"), "copy": False, "since": None, "rows": 1}
    (logs / "orders.csv").write_text("changed since, and not named")
    kept = json.loads(run("nightly", "--lake", lake, "--json"))["orders"]
    assert kept["copy"]
    assert Path(kept["file"]).read_text().startswith("pump_id,")
    assert datetime.fromisoformat(kept["since"]) <= datetime.now(UTC)
    told = " ".join(run("nightly", "--lake", lake).replace("│", " ").split())
    assert f"the copy kept since {kept['since'][:10]}" in told
    assert "--orders" in told


def test_a_night_without_any_orders_says_so(tmp_path):
    assert json.loads(run("nightly", "--lake", tmp_path / "lake", "--json"))["orders"]["file"] == ""
    assert "none: no pump has a patient" in run("nightly", "--lake", tmp_path / "lake")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake that is only read."""
    return a_lake(some_logs(tmp_path_factory.mktemp("made")))


@pytest.mark.parametrize("name", ["sessions", "setups", "days", "lines", "worklist"])
@pytest.mark.parametrize("style", ["table", "csv", "xlsx", "json", "parquet"])
def test_every_table_in_every_format(made, tmp_path, name, style):
    run(name, "--format", style, "-o", tmp_path / f"out.{style}", "--lake", made)
    assert (tmp_path / f"out.{style}").stat().st_size > 100


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["lines", "--month", "2026-02"], "No line of month 2026-02; there are lines of month 2026-03 (2)."),
        (["lines", "--payer", "payer-A", "--format", "csv"], "No line of payer payer-A; there are lines of payer payer-a (2)."),
        (
            ["sessions", "--month", "2026-02", "--patient", "pt-1"],
            "No session of month 2026-02 and patient pt-1; there are sessions of patient pt-1 and month 2026-03 (1).",
        ),
        (
            ["lines", "--month", "2026-02", "--patient", "pt-2"],
            "No line of month 2026-02 and patient pt-2; there are lines of month 2026-03 (2); there are lines of patient pt-1 (2).",
        ),
        (["amendments", "--payer", "payer-a"], "There are no amendments at all."),
        (["release", "--by", "ana", "--payer", "payer-b"], "without --payer and --month 2 lines are"),
    ],
)
def test_a_filter_that_finds_nothing_says_what_there_is(made, arguments, says):
    assert says in " ".join(run(*arguments, "--lake", made).split())


def test_a_table_of_which_there_is_nothing_says_so_and_json_stays_json(tmp_path):
    run("nightly", "--lake", tmp_path / "lake")
    assert "There are no lines at all; `pumpledger nightly`" in run("lines", "--lake", tmp_path / "lake")
    assert json.loads(run("lines", "--json", "--month", "2026-02", "--lake", tmp_path / "lake")) == []


def at_a_terminal(columns: int, *arguments: object) -> str:
    """What a terminal of so many columns gets, without colours."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    told = b""
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")} | {"TERM": "xterm"}
    command = [sys.executable, "-m", "ingest.cli", *map(str, arguments)]
    with subprocess.Popen(command, stdin=its, stdout=its, stderr=its, env=environment) as process:
        os.close(its)
        with suppress(OSError):  # what Linux says when the other end is closed
            while part := os.read(ours, 65536):
                told += part
    os.close(ours)
    assert process.returncode == 0, told
    return re.sub(r"\x1b\[[\d;]*[a-zA-Z]", "", told.decode()).replace("\r", "")


@pytest.mark.parametrize("columns", [40, 80])
def test_a_narrow_terminal_shows_every_word_of_a_line_and_a_wide_one_a_table(made, columns):
    (line, _) = json.loads(run("lines", "--json", "--lake", made))
    told = at_a_terminal(columns, "lines", "--lake", made)
    assert "…" not in told
    assert max(map(len, told.splitlines())) <= columns
    for word in (line["service_date"], "pt-1", "payer-a", "hydromorphone", line["code"], line["line_id"][:10], "Proposed"):
        assert word in told.split()
    night = at_a_terminal(columns, "nightly", "--lake", made)
    assert "…" not in night
    assert "┃ drug          ┃" in at_a_terminal(160, "lines", "--lake", made)


def test_decode_writes_events_without_a_lake(logs):
    out = logs / "events.parquet"
    told = json.loads(run("decode", logs / "a.jsonl", "--family", "canonical", "-o", out, "--json", cwd=logs))
    events = pq.read_table(out)
    assert events.column_names == tables.EVENTS.names
    assert (events.num_rows, told["events"], told["faults"]) == (6, 6, 0)
    assert not (logs / "lake").exists()


def test_strict_says_when_a_person_is_needed(logs):
    lines = numbered(infusion(0, 600))
    (logs / "long.jsonl").write_bytes(capture(lines, anchor=anchor(700)).data)
    run("load", logs / "long.jsonl", "--lake", logs / "lake")
    run("nightly", "--orders", logs / "orders.csv", "--lake", logs / "lake", "--strict", ok=3)
    run("nightly", "--lake", logs / "lake", ok=0)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["lines", "--lake", "nowhere"], 1, "no lake"),
        (["load", "missing.jsonl"], 2, "missing.jsonl"),
        (["load", "odd.bin"], 1, "--family"),
        (["load", "a.jsonl", "--clock", "yesterday"], 2, "PUMP_TIME=UTC"),
        (["nightly", "--orders", "none.csv"], 1, "--orders"),
        (["decode", "a.jsonl", "--family", "martian", "-o", "x.parquet"], 1, "canonical"),
        (["sync"], 1, "[[dock]]"),
        (["listen"], 1, "--broker"),
        (["listen", "--broker", "mqtt://127.0.0.1:1"], 1, "127.0.0.1"),
        (["explain", "ffffffffffff", "--lake", "lake"], 1, ""),
        (["nosuch"], 2, "nosuch"),
        (["lines", "--format", "pdf"], 2, "pdf"),
    ],
)
def test_errors_say_what_to_do_next(logs, arguments, code, says):
    (logs / "odd.bin").write_bytes(b"\x00\x01\x02")
    run("load", logs / "a.jsonl", "--lake", logs / "lake")
    assert says in run(*arguments, ok=code, cwd=logs)


def test_a_port_that_is_not_there_fails_and_what_others_gave_is_stored(logs):
    told = run("sync", "/dev/nosuchport=paradigm:123456", "--lake", logs / "lake", ok=1)
    assert "/dev/nosuchport" in told
    assert "123456" not in told.replace("/dev/nosuchport=paradigm:123456", "")


def test_a_lake_that_cannot_be_written_is_an_error_and_leaves_nothing(logs):
    (logs / "file").write_text("in the way")
    told = run("load", logs / "a.jsonl", "--lake", logs / "file" / "lake", ok=1)
    assert "lake" in told
    assert (logs / "file").read_text() == "in the way"


def test_help_shows_examples():
    for command in ("sync", "load", "nightly", "decode", "lines", "explain", "listen", "demo", "simulate"):
        assert "pumpledger " + command in run(command, "--help")


def test_a_device_is_written_to_and_stays_one_and_an_ending_says_the_format(made, tmp_path):
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    with subprocess.Popen(["cat", str(fifo)], stdout=subprocess.PIPE) as reader:
        run("lines", "--format", "csv", "-o", fifo, "--lake", made)
        assert reader.communicate(timeout=60)[0].startswith(b"line_id,")
    assert fifo.is_fifo()
    run("lines", "-o", "/dev/null", "--lake", made)
    assert Path("/dev/null").is_char_device()
    assert run("lines", "-o", "/dev/stdout", "--format", "csv", "--lake", made).startswith("line_id,")
    run("lines", "-o", tmp_path / "lines.csv", "--lake", made)
    assert (tmp_path / "lines.csv").read_text().startswith("line_id,")
    assert "ending says csv" in run("lines", "--format", "xlsx", "-o", tmp_path / "lines.csv", "--lake", made, ok=2)
    assert (tmp_path / "lines.csv").read_text().startswith("line_id,")


def test_events_that_go_to_standard_output_are_alone_there(logs):
    with (logs / "events.bin").open("wb") as out:
        subprocess.run(
            [sys.executable, "-m", "ingest.cli", "decode", logs / "a.jsonl", "--family", "canonical", "-o", "/dev/stdout"],
            stdout=out, stderr=subprocess.DEVNULL, check=True,
        )  # fmt: skip
    assert pq.read_table(logs / "events.bin").num_rows == 6
    assert "ending says xlsx" in run("decode", logs / "a.jsonl", "--family", "canonical", "-o", logs / "events.xlsx", ok=2)


def test_a_pump_that_contradicts_the_file_is_an_error(logs):
    assert "What a file says of itself counts" in run("load", logs / "a.jsonl", "--pump", "canonical:ZZ", "--lake", logs / "lake", ok=1)
    assert not (logs / "lake").exists()
    run("load", logs / "a.jsonl", "--pump", "canonical:A1", "--lake", logs / "lake")


def test_a_clock_that_ties_nothing_to_utc_is_told(logs):
    clock = ("--clock", "2026-03-02T12:00:00=2026-03-02T12:00:00Z")
    told = run("load", logs / "a.jsonl", *clock, "--lake", logs / "lake")
    assert "--clock is not used for canonical:" in told
    assert "their own clock" in told
    (logs / "bare.jsonl").write_bytes(capture(numbered(infusion(0, 95))).data)
    assert "--clock is not used" not in run("load", logs / "bare.jsonl", *clock, "--lake", logs / "lake")
    (logs / "empty.jsonl").write_bytes(capture([{"seq": 1, "kind": "no such"}]).data)
    assert "no record behind which" in run("load", logs / "empty.jsonl", *clock, "--lake", logs / "lake")
    assert "--clock is not used" in run("decode", logs / "a.jsonl", "--family", "canonical", *clock, "-o", logs / "e.parquet")


def test_a_clock_from_the_future_is_an_error_and_nothing_is_stored(logs):
    (logs / "b.jsonl").write_bytes(capture(numbered([event(0, "other")]), anchor=anchor(60 * 24 * 365 * 50)).data)
    assert "a day ahead" in run("load", logs / "b.jsonl", "--lake", logs / "lake", ok=1)
    assert not (logs / "lake").exists()


def test_orders_that_name_no_order_are_refused_unless_that_is_meant(logs, lake):
    header = (logs / "orders.csv").read_text().splitlines()[0]
    (logs / "orders.csv").write_text(header + "\n")
    assert "--no-orders" in run("nightly", "--orders", logs / "orders.csv", "--lake", lake, ok=1)
    assert len(json.loads(run("lines", "--json", "--lake", lake))) == 2
    run("nightly", "--orders", logs / "orders.csv", "--no-orders", "--lake", lake)
    assert json.loads(run("lines", "--json", "--lake", lake)) == []


def test_an_interrupt_while_the_command_line_is_read_in_leaves_no_traceback():
    code = """
import builtins, signal
from ingest.__main__ import main
real = builtins.__import__
def interrupted(name, *more):
    if name == "pyarrow":
        signal.raise_signal(signal.SIGINT)
    return real(name, *more)
builtins.__import__ = interrupted
main()
"""
    done = subprocess.run([sys.executable, "-c", HEEDED + code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (1, "Aborted!")


HEEDED = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
"""Ctrl-C heard also where a shell runs the tests beside itself: all that it starts so ignores it."""


@contextmanager
def running(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A `pumpledger` that does not end by itself; both its streams are one."""
    command = [sys.executable, "-c", f"{HEEDED}from ingest.__main__ import main; main()", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def told_until(process: subprocess.Popen[str], word: str) -> str:
    """What it prints until a line has this word in it."""
    assert process.stdout
    told = ""
    for line in process.stdout:
        told += line
        if word in line:
            return told
    raise AssertionError(f"{word!r} never came: {told}")


def interrupted(process: subprocess.Popen[str]) -> str:
    """What it still prints when Ctrl-C ends it, as it must: with 0."""
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=PATIENCE_S)[0]
    assert process.returncode == 0, told
    assert "Traceback" not in told
    assert "Aborted" not in told
    return told


def test_listen_ends_with_ctrl_c_says_what_came_and_all_that_came_is_kept(tmp_path, broker):
    listen = ("listen", "--broker", broker.url, "--mllp", "127.0.0.1:0", "--lake", tmp_path / "lake")
    with running(*listen) as hub:
        told_until(hub, "received 0, stored 0")
        with running("simulate", "canonical", "--therapy", "pca", "--broker", broker.url) as pump:
            said = pump.communicate(timeout=PATIENCE_S)[0]
        assert pump.returncode == 0, said
        ended = interrupted(hub)
    last = said.splitlines()[-1]
    stored = int(re.match(r"All of it has a receipt: (\d+) captures are stored, 0 refused\.$", last)[1])
    assert stored > 0
    assert f"Ended: received {stored}, stored {stored}, refused 0" in ended
    assert "Ended: MLLP: received 0" in ended
    assert json.loads(run("nightly", "--lake", tmp_path / "lake", "--json"))["received"] == stored


def test_a_pump_that_publishes_without_a_hub_ends_with_ctrl_c_and_says_what_has_no_receipt(broker):
    with running("simulate", "canonical", "--therapy", "pca", "--broker", broker.url) as pump:
        told_until(pump, "publishes to")
        assert re.search(r"Ended: [1-9]\d* captures have no receipt", interrupted(pump))


def test_listen_for_hl7_alone_ends_with_ctrl_c(tmp_path):
    with running("listen", "--mllp", "127.0.0.1:0", "--lake", tmp_path / "lake") as hub:
        told_until(hub, "MLLP at 127.0.0.1:")
        assert "Ended: MLLP: received 0, stored 0" in interrupted(hub)


def test_the_group_finds_every_command_of_every_module_and_no_other():
    modules = [importlib.import_module(f"ingest.commands.{one.name}") for one in pkgutil.iter_modules(commands.__path__)]
    written = [name for module in modules if hasattr(module, "commands") for name in module.commands.commands]
    context = click.Context(cli.main)
    assert cli.main.list_commands(context) == sorted(written)
    assert all(cli.main.get_command(context, name) is not None for name in written)


def test_amendments_go_into_a_file_as_its_ending_says(lake: Path) -> None:
    run("amendments", "--lake", lake, "-o", lake / "a.csv")
    assert (lake / "a.csv").read_text().startswith("patient_id,")


@pytest.mark.parametrize(
    "command",
    ["lines --patient \udcff", "export --to postgresql:///x --payer \udcff", "release --by \udcff", "decide 0123456789 --hold --by \udcff"],
)
def test_words_that_are_no_text_are_refused_and_leave_nothing(lake: Path, command: str) -> None:
    before = sorted(lake.rglob("*"))
    assert "no UTF-8 text" in run(*command.split(), "--lake", lake, ok=2)
    assert sorted(lake.rglob("*")) == before


@pytest.mark.parametrize("form", ["table", "csv", "json"])
def test_an_output_that_is_full_is_said(lake: Path, form: str) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "ingest.cli", "lines", "--lake", str(lake), "--format", form],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert "There is no room left" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_a_terminal_that_is_not_utf8_shows_what_it_can(lake: Path) -> None:
    line = json.loads(run("lines", "--lake", lake, "--json"))[0]["line_id"]
    run("decide", line, "--note", "患", "--by", "ana", "--lake", lake)
    done = subprocess.run(
        [sys.executable, "-m", "ingest", "decide", "list", "--lake", str(lake)],
        capture_output=True, check=False, env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"\\u60a3" in done.stdout
