"""Orders (docs/design.md §3): what is read, what is refused and why, which is in force, and local times."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.errors import InputError
from tests import kit
from transforms.orders import COLUMNS, Orders, local, local_ms, parse, utc_ms, zone

KNOWN = ("cpt-9637x", "per-diem")
USUAL = {
    "pump_id": "canonical:A1", "patient_id": "pt-1", "order_id": "ord-1", "rule_set": "cpt-9637x", "tz": "Europe/Berlin",
    "start": "2026-03-01T08:00:00Z",
}  # fmt: skip


def text(*rows: dict[str, str], columns: tuple[str, ...] = COLUMNS) -> str:
    return "\n".join([",".join(columns), *(",".join({**USUAL, **row}.get(name, "") for name in columns) for row in rows)])


def refused(*rows: dict[str, str]) -> str:
    with pytest.raises(InputError) as raised:
        parse(text(*rows), KNOWN)
    assert raised.value.code == "orders"
    return str(raised.value)


def ms(moment: str) -> int:
    return round(datetime.fromisoformat(moment).timestamp() * 1000)


def test_a_row_is_read_as_it_stands():
    row = {
        "concentration": "50 mg/mL", "dose_unit": "mg", "payer": "payer-a", "place_of_service": "12", "drug": " morphine ", "route": "SC",
        "stop": "2026-03-02T08:00:00.250+01:00",
    }  # fmt: skip
    (one,) = parse("\ufeff" + text(row), KNOWN).all
    assert (one.start_ms, one.stop_ms) == (ms("2026-03-01T08:00:00+00:00"), ms("2026-03-02T07:00:00.250+00:00"))
    told = (one.pump_id, one.patient_id, one.order_id, one.drug, one.route, one.concentration, one.dose_unit, one.payer, one.rule_set)
    assert told == ("canonical:A1", "pt-1", "ord-1", "morphine", "SC", "50 mg/mL", "mg", "payer-a", "cpt-9637x")
    assert (one.place_of_service, one.tz, one.zone.key) == ("12", "Europe/Berlin", "Europe/Berlin")
    assert parse(text({"start": "2026-03-01T08:00:00"}), KNOWN).all[0].start_ms == ms("2026-03-01T08:00:00+00:00")
    assert parse(text(), KNOWN).all == ()


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("sc", "SC"),
        ("Sc", "SC"),
        ("iv", "IV"),
        ("intravenous", "IV"),
        ("", ""),
        ("im", "im"),
        ("IVPB", "IVPB"),
        ("Subcutaneous", "Subcutaneous"),
    ],
)
def test_a_route_is_known_however_it_is_written(written, read):
    assert parse(text({"route": written}), KNOWN).all[0].route == read


@pytest.mark.parametrize(
    ("row", "why"),
    [
        *(({name: "  "}, f"line 2: {name} is empty") for name in ("pump_id", "patient_id", "order_id", "rule_set", "tz", "start")),
        ({"pump_id": "A1"}, "line 2: pump_id is not family:serial"),
        ({"pump_id": ":A1"}, "line 2: pump_id is not family:serial"),
        ({"pump_id": "canonical:"}, "line 2: pump_id is not family:serial"),
        ({"tz": "Europe/Nowhere"}, "line 2: there is no time zone 'Europe/Nowhere'"),
        ({"tz": "../tzdata"}, "line 2: there is no time zone '../tzdata'"),
        ({"tz": "Europe//Berlin"}, "line 2: there is no time zone 'Europe//Berlin'"),
        ({"tz": "zone.tab"}, "line 2: there is no time zone 'zone.tab'"),
        ({"tz": "Europe"}, "line 2: there is no time zone 'Europe'"),
        ({"rule_set": "x"}, "line 2: there is no rule set 'x' (there are cpt-9637x, per-diem)"),
        *(({"place_of_service": place}, "line 2: place_of_service is two digits or empty") for place in ("1", "123", "1a", "١٢")),
        ({"start": "monday"}, "line 2: start is no time such as 2026-03-01T08:00:00Z"),
        ({"stop": "monday"}, "line 2: stop is no time such as 2026-03-01T08:00:00Z"),
        ({"start": "0001-06-01"}, "line 2: start is no year of an order"),
        ({"stop": "9999-06-01"}, "line 2: stop is no year of an order"),
        ({"stop": "2026-03-01T08:00:00Z"}, "line 2: it stops before it starts"),
        ({"stop": "2026-03-01T07:59:59Z"}, "line 2: it stops before it starts"),
    ],
)  # fmt: skip
def test_a_row_that_is_wrong_is_refused_with_its_line(row, why):
    assert why in refused(row)


@pytest.mark.parametrize("year", ["0002", "9998"])
def test_any_other_year_is_one_of_an_order(year):
    assert parse(text({"start": f"{year}-01-02T00:00:00Z"}), KNOWN).all[0].start_ms % 86_400_000 == 0


def test_a_file_is_refused_whole_with_every_error():
    said = refused(
        {"tz": ""}, {"pump_id": "canonical:B2", "order_id": "ord-2"}, {"rule_set": ""}, {"pump_id": "canonical:C3", "payer": "x"}
    )
    assert "line 2: tz is empty; line 4: rule_set is empty" in said
    with pytest.raises(InputError, match="more fields than the first line names"):
        parse(text({}) + ",one more", KNOWN)
    with pytest.raises(InputError, match=r"orders\.csv lacks the columns tz, stop\."):
        parse(text({}, columns=tuple(name for name in COLUMNS if name not in ("tz", "stop"))), KNOWN)
    with pytest.raises(InputError, match="lacks the columns"):
        parse("", KNOWN)
    with pytest.raises(InputError, match="is no CSV"):
        parse(text({"drug": "x" * 200_000}), KNOWN)
    with pytest.raises(InputError, match=r"other\.csv is refused"):
        parse(text({"tz": ""}), KNOWN, name="other.csv")


def test_a_column_that_is_named_twice_is_refused():
    with pytest.raises(InputError, match=r"orders\.csv names the columns start twice"):
        parse(text({}, columns=(*COLUMNS, "start")), KNOWN)
    assert len(parse(text({}, columns=(*COLUMNS, "remark", "remark")), KNOWN).all) == 1


FIRST = {"stop": "2026-03-02T08:00:00Z"}


@pytest.mark.parametrize(
    ("rows", "overlap"),
    [
        ([FIRST, {"start": "2026-03-02T08:00:00Z"}], None),
        ([FIRST, {"start": "2026-03-02T07:59:59Z"}], "lines 2 and 3"),
        ([{"start": "2026-03-02T08:00:00Z"}, FIRST], None),
        ([{}, {"start": "2026-03-05T08:00:00Z"}], "lines 2 and 3"),
        ([{}, {"pump_id": "canonical:B2"}], None),
        ([{"pump_id": "canonical:B2"}, FIRST, {"start": "2026-03-01T09:00:00Z"}], "lines 3 and 4"),
    ],
)
def test_orders_of_one_pump_may_follow_each_other_and_not_overlap(rows, overlap):
    if overlap is None:
        assert len(parse(text(*rows), KNOWN).all) == len(rows)
    else:
        assert f"{overlap}: these orders overlap on one pump" in refused(*rows)


@pytest.mark.parametrize("name", ["patient_id", "drug", "route", "payer", "rule_set", "place_of_service", "tz"])
def test_the_rows_of_one_order_agree_on_what_it_is(name):
    other = {"rule_set": "per-diem", "tz": "UTC", "place_of_service": "12"}.get(name, "other")
    said = refused({}, {"pump_id": "canonical:B2"}, {"pump_id": "canonical:C3", name: other})
    assert f"lines 2 and 4: one order with two values of {name}" in said
    assert "lines 2 and 3" not in said
    assert len(parse(text({}, {"pump_id": "canonical:C3", "order_id": "ord-2", name: other}), KNOWN).all) == 2


def test_orders_are_found_by_pump_by_id_and_by_patient():
    known = parse(
        text(
            {"pump_id": "canonical:B2", "order_id": "ord-2", "patient_id": "pt-2"},
            {"start": "2026-03-05T08:00:00Z", "stop": "2026-03-06T08:00:00Z"},
            {"order_id": "ord-0", "start": "2026-03-01T08:00:00Z", "stop": "2026-03-05T08:00:00Z"},
            {"pump_id": "canonical:C3"},
        ),
        KNOWN,
    )
    assert [(one.pump_id, one.order_id) for one in known.all] == [
        ("canonical:A1", "ord-0"), ("canonical:A1", "ord-1"), ("canonical:B2", "ord-2"), ("canonical:C3", "ord-1"),
    ]  # fmt: skip
    assert [known.rows_of_pump(pump) for pump in ("canonical:A1", "canonical:B2", "canonical:C3")] == [range(2), range(2, 3), range(3, 4)]
    assert not known.rows_of_pump("canonical:Z9")
    assert [one.order_id for one in known.of_pump("canonical:A1")] == ["ord-0", "ord-1"]
    assert [one.pump_id for one in known.of_id("ord-1")] == ["canonical:A1", "canonical:C3"]
    assert [one.order_id for one in known.of_patient("pt-1")] == ["ord-0", "ord-1", "ord-1"]
    assert known.patients() == ["pt-1", "pt-2"]
    assert known.of_pump("canonical:Z9") == known.of_id("ord-9") == known.of_patient("pt-9") == []
    some = known.of_pumps(["canonical:C3", "canonical:A1", "canonical:Z9"])
    assert some.all == (*known.all[:2], known.all[3])
    assert [one.order_id for one in some.of_patient("pt-1")] == ["ord-0", "ord-1", "ord-1"]
    assert some.of_patient("pt-2") == []


def test_the_order_in_force_is_that_of_the_instant_from_its_start_up_to_its_stop():
    known = parse(text(FIRST, {"order_id": "ord-2", "start": "2026-03-03T08:00:00Z", "tz": "Asia/Kathmandu"}), KNOWN)

    def at(moment: str) -> str | None:
        found = known.in_force("canonical:A1", ms(moment + "+00:00"), None)
        return found and found.order_id

    assert [at("2026-03-01T07:59:59.999"), at("2026-03-01T08:00:00"), at("2026-03-02T07:59:59.999")] == [None, "ord-1", "ord-1"]
    assert [at("2026-03-02T08:00:00"), at("2026-03-03T08:00:00"), at("2100-01-01T00:00:00")] == [None, "ord-2", "ord-2"]

    def printed(moment: str) -> str | None:
        found = known.in_force("canonical:A1", None, datetime.fromisoformat(moment))
        return found and found.order_id

    assert [printed("2026-03-01T08:59:59"), printed("2026-03-01T09:00:00"), printed("2026-03-02T09:00:00")] == [None, "ord-1", None]
    assert [printed("2026-03-03T13:44:59"), printed("2026-03-03T13:45:00")] == [None, "ord-2"]
    assert known.in_force("canonical:A1", None, None) is None
    assert known.in_force("canonical:Z9", ms("2026-03-01T09:00:00+00:00"), None) is None
    assert known.in_force("canonical:A1", ms("2026-03-02T09:00:00+00:00"), datetime.fromisoformat("2026-03-01T10:00:00")) is None


# --- local times ----------------------------------------------------------------------------------------------------------------------

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
ZONES = ("America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe", "Africa/Monrovia", "Pacific/Apia", "UTC")
INSTANTS = st.integers(-40 * 366 * 86_400_000, 130 * 366 * 86_400_000)


@given(instants=st.lists(INSTANTS, max_size=20), name=st.sampled_from(ZONES))
def test_local_times_are_those_of_the_zone_to_the_millisecond(instants, name):
    tz = zone(name)
    right = [(EPOCH + timedelta(milliseconds=one)).astimezone(tz).replace(tzinfo=None) for one in instants]
    assert [local(one, tz) for one in instants] == right
    naive = [round((one - EPOCH.replace(tzinfo=None)) / timedelta(milliseconds=1)) for one in right]
    assert local_ms(np.array(instants, dtype=np.int64), tz).tolist() == naive


@pytest.mark.parametrize("second", [-1, 0, 1, 44, 45, 46, 59, 60])
def test_an_offset_that_is_no_whole_minute_changes_when_it_does(second):
    # Liberia was 44 min 30 s behind UTC up to the midnight that began 7 January 1972
    tz = zone("Africa/Monrovia")
    at = datetime(1972, 1, 7, 0, 44, 30, tzinfo=UTC) + timedelta(seconds=second)
    instant = round(at.timestamp() * 1000) + 7
    right = (at + timedelta(milliseconds=7)).astimezone(tz).replace(tzinfo=None)
    assert local(instant, tz) == right
    assert local_ms(np.array([instant], dtype=np.int64), tz).tolist() == [round(right.replace(tzinfo=UTC).timestamp() * 1000)]


@pytest.mark.parametrize("after_ms", [-60_001, -1, 0, 1, 30_000, 59_999, 60_000])
@pytest.mark.parametrize(
    ("name", "change"),
    [("Europe/Berlin", "2026-03-29T01:00:00"), ("America/New_York", "2026-11-01T06:00:00"), ("Australia/Lord_Howe", "2026-04-04T15:00:00")],
)
def test_an_offset_changes_at_its_instant_to_the_millisecond(name, change, after_ms):
    instant, tz = ms(change + "+00:00") + after_ms, zone(name)
    right = (EPOCH + timedelta(milliseconds=instant)).astimezone(tz).replace(tzinfo=None)
    assert local(instant, tz) == right
    assert local_ms(np.array([instant], dtype=np.int64), tz).tolist() == [round(right.replace(tzinfo=UTC).timestamp() * 1000)]


def test_of_an_hour_that_comes_twice_the_first_is_meant():
    tz = zone("Europe/Berlin")
    assert utc_ms(datetime.fromisoformat("2026-10-25T02:30:00"), tz) == ms("2026-10-25T00:30:00+00:00")
    assert utc_ms(datetime.fromisoformat("2026-07-01T02:30:00.250"), tz) == ms("2026-07-01T00:30:00.250+00:00")


def test_a_zone_is_found_by_its_name_alone():
    assert zone("Europe/Berlin") is zone("Europe/Berlin")
    for name in ("", ".", "../x", "Europe/", "Europe/.hidden", "Europe", "zonenow.tab"):
        with pytest.raises(KeyError):
            zone(name)


def test_orders_of_the_kit_are_read_as_any_other():
    assert isinstance(kit.orders(), Orders)
    assert kit.orders().all[0].start_ms == ms("2026-01-01T00:00:00+00:00")
