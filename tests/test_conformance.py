"""The conformance kit over every family that can be played; families are found, none is named."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import devices
import simulators
from devices.contract import Capture, Log
from devices.dialogue import Summary
from devices.errors import PumpledgerError
from ingest import docks
from ingest.store import Store
from simulators.link import Faults, PublishingDevice, SerialDevice, running
from simulators.rig import Rig
from simulators.therapy import Script, therapy
from tests import conformance as kit
from tests.conformance import ADAPTERS, ASKED, FAMILIES, Played
from transforms import totals

of_every_family = pytest.mark.parametrize("family", FAMILIES)
of_every_asked_family = pytest.mark.parametrize("family", ASKED)
QUARTERS = range(4)
"""A download that is cut at each of its bytes is cut in four tests, so that several processes share them."""
SILENT_S = 300.0
"""So long may a dialogue wait, all its deadlines together, before it gives up a line that is dead."""


def chosen(family: str, captures: int) -> Script:
    """The shortest script that this family can perform and that gives so many captures with records."""
    for script in (kit.short(), kit.everything(), *(therapy(kind, 2, kit.SPRING, days) for days in (2, 5, 9) for kind in kit.KINDS)):
        if kit.can_perform(family, script):
            options = {"batch": 12} if "batch" in kit.parameters(family) else {}
            played = kit.play(family, script, **options)
            if sum(played.adapter.decode(one).records.num_rows > 0 for one in played.captures) >= captures:
                return script
    raise AssertionError(f"no script gives {captures} captures of {family}")


@cache
def several(family: str) -> Played:
    """A pump whose log came in several captures."""
    options = {"batch": 12} if "batch" in kit.parameters(family) else {}
    return kit.play(family, chosen(family, 3), 1, **options)


def log_of(played: Played, captures: Sequence[Capture] | None = None) -> Log:
    return kit.log_of(played.adapter, played.truth.pump_id, played.captures if captures is None else captures)


def infused_s(played: Played, log: Log) -> float:
    rows = kit.derived(log, played.known).intervals.to_pylist()
    return sum(row["to_ms"] - row["from_ms"] for row in rows if row["class"] == "infusing") / 1000


# --- that there is something to test --------------------------------------------------------------------------------------------


def test_every_family_of_this_project_has_a_simulator_and_every_simulator_a_family():
    ours = {name for name, adapter in ADAPTERS.items() if getattr(adapter, "__name__", "").startswith(f"{devices.__name__}.")}
    assert ours == set(simulators.families())


@of_every_family
def test_a_pump_is_asked_exactly_where_its_family_knows_how_to_ask(family):
    device, truth = simulators.family(family).simulate(kit.short())
    assert truth.pump_id == device.pump_id
    assert truth.pump_id.startswith(f"{family}:")
    assert isinstance(device, SerialDevice) == (family in ASKED)
    if family in ASKED:
        assert hasattr(ADAPTERS[family], "HELLO")
        assert hasattr(ADAPTERS[family], "is_hello")
    else:
        assert isinstance(device, PublishingDevice) or hasattr(device, "files")


# --- round trip -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "options"), [(name, options) for name in FAMILIES for options in kit.variants(name)])
def test_what_is_read_is_what_truly_happened(family, options):
    performed = proved_s = 0
    for name, script in kit.scripts():
        if not kit.can_perform(family, script):
            continue
        played = kit.play(family, script, performed, **options)
        records, faults, anchors = kit.decoded(played.adapter, played.captures)
        log = played.adapter.assemble(played.truth.pump_id, records, faults, anchors)
        facts = kit.derived(log, played.known)
        assert faults.to_pylist() == [], name
        assert kit.told_differences(log, facts, played.truth) == [], name
        assert kit.derived_differences(facts, played.truth) == [], name
        assert kit.accounting_differences(played.captures, records, faults, log) == [], name
        assert kit.sheet_differences(played.adapter.SHEET, log) == [], name
        performed, proved_s = performed + 1, proved_s + played.truth.proved_s
    assert performed >= 5
    assert proved_s > 86_400


@of_every_family
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(kind=st.sampled_from(kit.KINDS), seed=st.integers(0, 100_000), loss=st.booleans())
def test_what_is_read_of_any_therapy_is_what_truly_happened(family, kind, seed, loss):
    script = therapy(kind, seed, kit.AUTUMN if seed % 2 else kit.SPRING, 2, tz=kit.ZONE, clock_loss=loss)
    if kit.can_perform(family, script):
        played = kit.play(family, script, seed)
        log = log_of(played)
        facts = kit.derived(log, played.known)
        assert kit.told_differences(log, facts, played.truth) == []
        assert kit.derived_differences(facts, played.truth) == []


@of_every_family
@pytest.mark.parametrize("start", [kit.SPRING, kit.AUTUMN], ids=["spring", "autumn"])
def test_a_clock_that_is_set_takes_no_time_and_gives_none(family, start):
    played = kit.play(family, kit.reset_clocks(start))
    truth = played.truth
    rows = kit.derived(log_of(played), played.known).intervals.to_pylist()
    lengths = sorted((row["to_ms"] - row["from_ms"]) / 1000 for row in rows if row["class"] == "infusing")
    wanted = sorted((stop - begin).total_seconds() for begin, stop in truth.proved)
    assert len(wanted) >= 4
    assert lengths == pytest.approx(wanted, abs=2)


@of_every_family
def test_files_of_a_pump_are_known_to_be_its_own_and_give_the_log_that_its_wire_gives(family):
    played = several(family)
    files = [one for one in kit.files_of(played) if one[1]]
    for name, data in files:
        assert [one for one, adapter in ADAPTERS.items() if adapter.recognise(name, data)] == [family]
    captures = played.adapter.read_files(files, pump_id=played.truth.pump_id, model=played.captures[0].model, anchor=None)
    assert log_of(played, captures).events.equals(log_of(played).events)


# --- decoding together, the pump's own totals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [name for name in FAMILIES if hasattr(ADAPTERS[name], "decode_all")])
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_captures_that_are_decoded_together_give_what_each_gives_alone(family, seed):
    played = several(family)
    chance = random.Random(seed)
    some = kit.wounded(played.captures, chance) + chance.sample(played.captures, chance.randint(0, len(played.captures)))
    chance.shuffle(some)
    assert kit.together_differences(played.adapter, some) == []


@pytest.mark.parametrize("family", [name for name in FAMILIES if hasattr(ADAPTERS[name], "cross_check")])
def test_what_a_pump_says_that_it_gave_is_what_its_records_add_up_to_until_one_is_missing(family):
    compared = found = 0
    for _, script in kit.scripts():
        if kit.can_perform(family, script):
            log = log_of(kit.play(family, script))
            checks = ADAPTERS[family].cross_check(log.events)
            assert totals.disagreements(checks) == []
            boluses = [nth for nth, row in enumerate(log.events.to_pylist()) if row["kind"] == "bolus_delivered" and (row["dose"] or 0) > 1]
            for nth in boluses[:: len(boluses) // 8 + 1]:
                left = pa.concat_tables([log.events[:nth], log.events[nth + 1 :]])
                found += len(totals.disagreements(ADAPTERS[family].cross_check(left)))
            compared += checks.num_rows
    assert compared > 10
    assert found > 5


# --- order, repetition, split -----------------------------------------------------------------------------------------------------


@of_every_family
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_order_and_repetition_of_captures_gives_the_same_log(family, data):
    played = several(family)
    whole = log_of(played)
    again = data.draw(st.permutations(played.captures + data.draw(st.lists(st.sampled_from(played.captures), max_size=5))))
    records, faults, anchors = kit.decoded(played.adapter, again)
    log = played.adapter.assemble(played.truth.pump_id, records, faults, anchors)
    assert log.events.equals(whole.events)
    assert log.anchors == whole.anchors
    assert log.gaps_visible == whole.gaps_visible
    assert kit.accounting_differences(again, records, faults, log) == []


@of_every_family
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_split_gives_the_same_events(family, data):
    whole = several(family)
    script = chosen(family, 3)
    captures: list[Capture] = []
    if "batch" in kit.parameters(family):
        for batch in data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=3)):
            captures += kit.play(family, script, 1, batch=batch).captures
    if family in ASKED or not captures:
        length_s = int((script.end - script.start).total_seconds())
        moments = data.draw(st.lists(st.integers(0, length_s), max_size=3, unique=True).map(sorted))
        for moment in (*moments, length_s):
            captures += kit.play(family, script, 1, at=script.start + timedelta(seconds=moment), known=captures).captures
    captures = data.draw(st.permutations(captures))
    assert log_of(whole, captures).events.equals(log_of(whole).events)


# --- broken off -------------------------------------------------------------------------------------------------------------------


@of_every_asked_family
@pytest.mark.parametrize("quarter", QUARTERS)
def test_a_download_that_is_cut_at_any_byte_goes_on_with_nothing_lost_or_doubled(family, quarter, record_property):
    script = chosen(family, 2)
    adapter = ADAPTERS[family]

    def fresh(cut: int | None) -> tuple[kit.Wire, str]:
        clock = kit.Clock(script.end)
        device, _ = simulators.family(family).simulate(script, 4, now=clock)
        assert isinstance(device, SerialDevice)
        return kit.Wire(device, clock, cut), device.pump_id

    wire, pump = fresh(None)
    captures, end = kit.ask_all(adapter, pump, wire.exchange)
    assert isinstance(end, Summary)
    assert end.complete
    whole = kit.log_of(adapter, pump, captures).events
    cuts = range(wire.heard * quarter // len(QUARTERS), wire.heard * (quarter + 1) // len(QUARTERS))
    record_property("cuts", f"before each of the bytes {cuts.start} to {cuts.stop - 1} of {wire.heard}")
    seen: set[tuple[int, tuple[str, ...]]] = set()
    for cut in cuts:
        line = kit.Replay(wire.answers, kit.Clock(script.end), cut)
        got, end = kit.ask_all(adapter, pump, line.exchange)
        assert line.silent_s <= SILENT_S, cut
        if isinstance(end, Summary) and end.complete:
            assert kit.log_of(adapter, pump, got).events.equals(whole), cut
        state = (line.answered, tuple(one.sha256 for one in got))
        if state in seen:
            continue
        seen.add(state)
        broken, _ = fresh(cut)
        kept, _ = kit.ask_all(adapter, pump, broken.exchange)
        assert kept == got, cut
        broken.cut = None
        more, end = kit.ask_all(adapter, pump, broken.exchange, kept)
        assert isinstance(end, Summary), (cut, end)
        assert end.complete, cut
        assert kit.log_of(adapter, pump, [*kept, *more]).events.equals(whole), cut
    assert len(seen) > 3


@of_every_asked_family
def test_twenty_pumps_that_are_unplugged_somewhere_are_read_whole_once_they_are_plugged_in_again(family, tmp_path):
    script = chosen(family, 2)
    adapter = ADAPTERS[family]
    usual = kit.play(family, script, 4)
    wire = kit.Wire(simulators.family(family).simulate(script, 4)[0], kit.Clock(script.end))
    kit.ask_all(adapter, usual.truth.pump_id, wire.exchange)
    chance = random.Random(family)
    stem = str(kit.parameters(family)["serial"].default)[:-2]
    now = running(script.end, lambda: datetime.now(UTC))
    played = [
        simulators.family(family).simulate(
            script, 4, serial=f"{stem}{number:02d}", now=now, faults=Faults(unplug_at=chance.randrange(wire.heard))
        )
        for number in range(20)
    ]
    with Rig([device for device, _ in played]) as rig:
        ports = [f"{path}={pump}" for pump, path in rig.ports.items()]
        first = docks.sync_all(tmp_path, ports)
        assert {one.get("error") for one in first} == {"unplugged"}
        for pump in rig.ports:
            rig.port(pump).plug_in()
        again = docks.sync_all(tmp_path, ports)
        assert [one["line"] for one in again if "error" in one or not one["complete"]] == []
    with Store(tmp_path / "store.sqlite") as store:
        arrived = [capture for capture, _ in store.pending()]
    whole = log_of(usual).events.drop_columns(["event_id", "pump_id"])
    for _, truth in played:
        mine = [one for one in arrived if one.pump_id == truth.pump_id]
        assert kit.log_of(adapter, truth.pump_id, mine).events.drop_columns(["event_id", "pump_id"]).equals(whole)


# --- damage ---------------------------------------------------------------------------------------------------------------------


@of_every_family
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_damaged_captures_give_tables_or_faults_with_their_bytes_and_never_an_exception(family, seed):
    played = several(family)
    captures = kit.wounded(played.captures, random.Random(seed))
    with kit.limited(20):
        assert kit.read_totally(played.adapter, captures + (played.captures if seed % 2 else []), played.known) == []


@of_every_family
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(noise=st.binary(min_size=1, max_size=600))
def test_noise_is_never_silently_dropped(family, noise):
    played = several(family)
    capture = kit.replace(played.captures[0], data=b"\x01" + noise)
    one, wrong = kit.decode_totally(played.adapter, capture)
    assert wrong == []
    assert one.records.num_rows + one.faults.num_rows > 0


@of_every_family
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_damaged_files_are_read_or_refused_in_words(family, seed):
    played = several(family)
    chance = random.Random(seed)
    files = kit.files_of(played)
    name, data = chance.choice(files)
    spoiled = kit.damaged(data, chance.choice(files)[1], chance)
    some = [(chance.choice((name, "log", "page-1.data", "x/page-99999999.data", "")), spoiled), *files[: chance.choice((0, 2))]]
    model = chance.choice((None, played.captures[0].model, "x"))
    with kit.limited(20):
        assert kit.load_totally(played.adapter, some, played.truth.pump_id, model) == []


@of_every_family
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_a_record_that_is_not_read_is_a_fault_and_the_rest_is_there(family, seed):
    """One wounded capture: what another one holds is read as before."""
    played = several(family)
    chance = random.Random(seed)
    number = chance.randrange(len(played.captures))
    one = played.captures[number]
    spoiled = kit.replace(one, data=kit.damaged(one.data, one.data, chance))
    rest = [*played.captures[:number], *played.captures[number + 1 :]]
    records, faults, anchors = kit.decoded(played.adapter, [*rest, spoiled])
    log = played.adapter.assemble(played.truth.pump_id, records, faults, anchors)
    assert kit.accounting_differences([*rest, spoiled], records, faults, log) == []
    mine, _, _ = kit.decoded(played.adapter, rest)
    assert set(mine.column("record_key").to_pylist()) <= set(records.column("record_key").to_pylist())


# --- the sheet --------------------------------------------------------------------------------------------------------------------


@of_every_family
def test_a_log_of_all_that_can_happen_tells_what_its_sheet_says_it_tells(family):
    """That it tells nothing beyond is tested with every round trip."""
    sheet = ADAPTERS[family].SHEET
    assert sheet.family == family
    log = log_of(kit.play(family, kit.everything()))
    assert kit.promised(sheet) <= kit.shown(log)
    assert kit.sheet_differences(sheet, log) == []


@of_every_family
def test_a_capture_that_is_missing_is_a_hole_exactly_where_gaps_are_visible(family):
    played = several(family)
    full = [one for one in played.captures if played.adapter.decode(one).records.num_rows]
    middle = full[len(full) // 2]
    log = log_of(played, [one for one in played.captures if one is not middle])
    assert log.events.num_rows < log_of(played).events.num_rows
    kinds = set(log.events.column("kind").to_pylist())
    assert ("data_gap" in kinds or "data_corruption" in kinds) == ADAPTERS[family].SHEET.gaps_visible
    assert infused_s(played, log) <= played.truth.flowed_s + (1 if ADAPTERS[family].SHEET.gaps_visible else float("inf"))


def test_the_capability_pages_are_current():
    there = {path.name: path.read_text() for path in kit.PAGES.glob("*.md")}
    assert there == kit.pages(), "print them anew: python -m tests.conformance"


def test_the_kit_finds_what_a_family_gets_wrong():
    """A check that cannot fail is none: a log with one event changed, one lost and one made up is found."""
    played = several(FAMILIES[0])
    log = log_of(played)
    facts = kit.derived(log, played.known)
    assert kit.told_differences(log, facts, played.truth) == []
    rows = log.events.to_pylist()
    start = next(number for number, row in enumerate(rows) if row["kind"] == "delivery_start")
    stop = next(number for number, row in enumerate(rows) if number > start and row["kind"] == "delivery_stop")
    later = [*rows[:start], {**rows[start], "rate_ml_h": 9.9}, *rows[start + 1 :]]
    gone = [*rows[:stop], *rows[stop + 1 :]]
    for wrong in (later, gone):
        events = log.events.from_pylist(wrong, schema=log.events.schema)
        other = kit.replace(log, events=events, anchors=())
        assert kit.told_differences(other, kit.derived(other, played.known), played.truth)
    records, faults, _ = kit.decoded(played.adapter, played.captures)
    events = log.events.from_pylist(gone, schema=log.events.schema)
    assert kit.accounting_differences(played.captures, records, faults, kit.replace(log, events=events))


def test_errors_of_a_dialogue_end_it_and_every_other_is_raised():
    """What `ask_all` takes for an end is the one error tree alone."""
    adapter = ADAPTERS[ASKED[0]]
    device, truth = simulators.family(ASKED[0]).simulate(kit.short())
    assert isinstance(device, SerialDevice)
    line = kit.Wire(device, kit.Clock(truth.end), cut=0)
    assert isinstance(kit.ask_all(adapter, truth.pump_id, line.exchange)[1], PumpledgerError)
    with pytest.raises(ZeroDivisionError):
        kit.ask_all(adapter, truth.pump_id, lambda _: 1 / 0)  # type: ignore[arg-type,return-value]
