"""IHE PCD messages: IHE's own, made ones, every row of the mapping (docs/pump-formats.md §6), and the minutes of the segment rules (§2)."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from devices import pcd
from devices.contract import Anchor, Capture, dump_detail, joined
from devices.errors import InputError
from devices.families import families
from tests.kit import orders
from transforms.sessions import FactPolicy, derive

PUMP = "pcd:P7/00AA"
DEVICE = "P7^^00AA^EUI-64"
DAY = datetime(2026, 3, 2, 8)
ML_H, ML = "265266^MDC_DIM_MILLI_L_PER_HR^MDC^mL/h^mL/h^UCUM", "263762^MDC_DIM_MILLI_L^MDC^mL^mL^UCUM"


def when(minutes=0.0, zone="+0000"):
    return (DAY + timedelta(minutes=minutes)).strftime("%Y%m%d%H%M%S") + zone


def obx(term, place, value="", unit="", kind="ST"):
    return f"OBX|1|{kind}|{term}|{place}|{value}|{unit}|||||R"


def message(*body, control="1", time=None, sent=None, trigger="R42", device=DEVICE, sender="GATE^01^EUI-64"):
    time = when() if time is None else time
    head = [
        rf"MSH|^~\&|{sender}|MAKER|US|US|{sent or time}||ORU^{trigger}^ORU_R01|{control}|P|2.6|||AL|NE||ASCII",
        "PID|||SECRET-7^^^IHE^PI||Hidden^Person^^^^^L",
        "PV1||I|Ward^7^1",
        f"OBR|1|ORDER-1^X|INF-1^X|1^Drug|||{time}",
    ]
    mds = [f"OBX|1||70049^MDC_DEV_PUMP_INFUS_LVP_MDS^MDC|1.0.0.0|||||||X|||||N2||{device}"] if device else []
    return "".join(line + "\r" for line in (*head, *mds, *body)).encode()


def event(name, minutes=0.0, *, source="primary", status="delivering", reason="", rate="2.0", more=(), code=0, **fields):
    """A PCD-10 message as the profile has it; a field that is None is left out."""
    group = {"primary": 2, "secondary": 3, "clinician": 4, "pca": 5, "loading": 6, "intermittent": 7}.get(source, 2)
    body = [
        obx("68487^MDC_ATTR_EVT_COND^MDC", "1.0.0.2", f"{code}^{name}^MDC", kind="CWE"),
        obx("68488^MDC_ATTR_EVT_SOURCE^MDC", "1.0.0.3", f"1.1.{group}.0"),
        obx("0^MDC_DEV_PUMP_DELIVERY_INFO^MDC", "1.1.1.0"),
        obx("158014^MDC_FLOW_FLUID_PUMP_CURRENT^MDC", "1.1.1.2", rate, ML_H, "NM") if rate is not None else "",
        obx("158016^MDC_DEV_PUMP_ACTIVE_SOURCES^MDC", "1.1.1.3", f"^pump-source-info-{source}", kind="CWE") if source else "",
        obx("158005^MDC_DEV_PUMP_CURRENT_DELIVERY_STATUS^MDC", f"1.1.{group}.1", f"^pump-delivery-status-{status}") if status else "",
        obx("158006^MDC_DEV_PUMP_NOT_DELIVERING_REASON^MDC", f"1.1.{group}.3", f"^pump-stopped-{reason}") if reason else "",
        *more,
    ]
    return message(*filter(None, body), **{"time": when(minutes), **fields})


START, STOP, COMP = "MDC_EVT_PUMP_DELIV_START", "MDC_EVT_PUMP_DELIV_STOP", "MDC_EVT_PUMP_DELIV_COMP"


def log_messages(*steps):
    """Messages with control ids in the order in which they are given."""
    return [event(name, minutes, control=f"{number:04d}", **fields) for number, (minutes, name, fields) in enumerate(steps)]


def started(minutes, source="primary", **fields):
    return minutes, START, {"source": source, **fields}


def stopped(minutes, source="primary", reason="by-clinician", **fields):
    return minutes, STOP, {"source": source, "status": "not-delivering", "reason": reason, "rate": "0", **fields}


def moved_on(minutes, source="primary", name=STOP):
    return minutes, name, {"source": source, "status": "transitioning"}


def completed(minutes, source="primary", reason="switching-source"):
    return minutes, COMP, {"source": source, "status": "not-delivering", "reason": reason}


def kvo(minutes):
    return minutes, START, {"source": "primary", "status": "kvo", "rate": "0.5"}


def snapshot(minutes, shows, status="", **fields):
    body = [obx("184519^MDC_PUMP_INFUSING_STATUS^MDC", "1.1.1.1", f"^pump-status-{shows}")]
    if status:
        body.append(obx("158005^MDC_DEV_PUMP_CURRENT_DELIVERY_STATUS^MDC", "1.1.2.1", f"^pump-delivery-status-{status}"))
    return message(*body, **{"time": when(minutes), "trigger": "R01", "control": f"s{minutes}", **fields})


def alarm(phase="start", *, value="196940^MDC_EVT_FLUID_LINE_OCCL^MDC", minutes=0.0, observed="", **fields):
    body = [
        f"OBX|1|CWE|196616^MDC_EVT_ALARM^MDC|1.0.0.0.1|{value}|||ST|||F|||||||{DEVICE}",
        f"OBX|2|CWE|68480^MDC_ATTR_ALERT_SOURCE^MDC|1.0.0.0.2|69985^MDC_DEV_PUMP_INFUS_MDS^MDC||||||F|||{observed}",
        f"OBX|3|ST|68481^MDC_ATTR_EVENT_PHASE^MDC|1.0.0.0.3|{phase}||||||F",
        "OBX|5|ST|68483^MDC_ATTR_ALARM_INACTIVATION_STATE|1.0.0.0.5|enabled|||||F",
    ]
    return message(*body, **{"trigger": "R40", "time": when(minutes), "device": "", **fields})


def capture(*messages, pump=PUMP, anchor=None):
    return Capture(data=b"".join(messages), family="pcd", pump_id=pump, anchor=anchor)


def record(one, **fields):
    """The one record of a message that has no fault."""
    found = pcd.decode(capture(one, **fields))
    assert found.faults.to_pylist() == []
    (row,) = found.records.to_pylist()
    return row


def fault(one, **fields):
    """The one fault of a message that gives no record."""
    found = pcd.decode(capture(one, **fields))
    assert found.records.num_rows == 0
    (row,) = found.faults.to_pylist()
    return row


def assembled(*captures):
    return pcd.assemble(PUMP, *joined(pcd.decode(one) for one in captures))


def log_of(*messages):
    return assembled(*(capture(one) for one in messages))


def facts(*messages):
    return derive(log_of(*messages), orders(pump_id=PUMP), FactPolicy())


def sessions(*messages):
    return facts(*messages).sessions.to_pylist()


def minutes_of(*steps):
    """(infusing, kvo, alarm, paused, flags but GAPS_INVISIBLE) in minutes of the one session that these steps give."""
    (one,) = sessions(*log_messages(*steps))
    assert "GAPS_INVISIBLE" in one["flags"]
    spans = [one[f"{what}_s"] / 60 for what in ("infusing", "kvo", "alarm", "paused")]
    return (*spans, sorted(set(one["flags"]) - {"GAPS_INVISIBLE"}))


def kinds(log):
    return [(row["kind"], row["source"]) for row in log.events.to_pylist()]


# --- captured messages ---------------------------------------------------------------------------------------------------------


def fixture(folder, name):
    data = (folder / "ihe_pcd" / name).read_bytes()
    assert pcd.recognise(name, data)
    (one,) = pcd.read_files([(name, data)])
    found = pcd.decode(one)
    assert found.faults.num_rows == 0
    (row,) = found.records.to_pylist()
    (told,) = found.anchors.to_pylist()
    assert (told["pump_clock"], told["utc"]) == (row["pump_time"], row["pump_time"].replace(tzinfo=UTC))
    return row


def test_the_delivery_start_of_the_ipec_supplement_is_read(fixtures):
    row = fixture(fixtures, "ipec_2015_delivery_start.hl7.txt")
    assert row["pump_id"] == "pcd:E0002/0012210000000000"
    assert row["record_key"] == "PAT_DEVICE_PUMPVENDOR^9999990000000000^EUI-64|6358051206735492253"
    assert (row["kind"], row["source"], row["native_code"]) == ("delivery_start", "primary", "MDC_EVT_PUMP_DELIV_START")
    assert row["pump_time"] == datetime(2015, 10, 15, 18, 21, 6)
    assert (row["rate_ml_h"], row["programmed_ml"]) == (15.4, 250.0)
    assert (row["rate_dose_h"], row["dose_unit"]) == (300.0, "ug/kg")
    assert b"Hon^Charles" not in row["raw"]


def test_the_occlusion_of_the_technical_framework_starts_and_ends(fixtures):
    start = fixture(fixtures, "pcd_tf_vol2_pcd04_occlusion_start.hl7.txt")
    end = fixture(fixtures, "pcd_tf_vol2_pcd04_occlusion_end.hl7.txt")
    assert start["pump_id"] == end["pump_id"] == "pcd:P6013/0012210000000000"
    assert (start["kind"], start["alarm_class"], start["stops_delivery"]) == ("alarm_raised", "occlusion", False)
    assert (end["kind"], end["alarm_class"], end["stops_delivery"]) == ("alarm_cleared", "occlusion", None)
    assert (start["pump_time"], end["pump_time"]) == (datetime(2012, 1, 9, 23, 54, 17), datetime(2012, 1, 9, 23, 54, 26))
    assert start["native_code"] == "MDC_EVT_FLUID_LINE_OCCL"


# --- the mapping ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("MDC_EVT_COMM_STATUS_CHANGE", "device_link"),
        ("MDC_EVT_PUMP_PROG_CLEARED", "settings_change"),
        ("MDC_EVT_PUMP_AUTO_PROG_CLEARED", "other"),
        ("MDC_EVT_PATIENT_CHANGE", "new_patient"),
        ("MDC_EVT_PATIENT_ID_CHANGE", "new_patient"),
        ("MDC_EVT_PATIENT_PARAMETER_CHANGE", "settings_change"),
        ("MDC_EVT_PUMP_VOL_COUNTERS_CLEARED", "counters_cleared"),
        ("MDC_EVT_DEVICE_TIME_CHANGED", "clock_change"),
        ("MDC_EVT_VOL_INFUS_NEAR_COMP", "other"),
    ],
)
def test_every_event_that_is_no_delivery_has_its_kind(name, kind):
    row = record(event(name, source="", status="", rate=None))
    assert (row["kind"], row["native_code"], row["source"]) == (kind, name, None)


@pytest.mark.parametrize("source", ["primary", "secondary", "pca", "loading", "clinician", "intermittent"])
def test_starts_stops_and_completions_are_of_the_active_source(source):
    for name, status, kind in ((START, "delivering", "start"), (STOP, "not-delivering", "stop"), (COMP, "not-delivering", "complete")):
        row = record(event(name, source=source, status=status))
        assert (row["kind"], row["source"]) == (f"delivery_{kind}", source)


def test_a_start_whose_delivery_status_is_kvo_is_of_kvo_though_the_active_source_says_primary():
    row = record(event(START, status="kvo", rate="0.5"))
    assert (row["kind"], row["source"], row["rate_ml_h"]) == ("delivery_start", "kvo", 0.5)


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        ("by-clinician", "user"),
        ("alarming", "alarm"),
        ("not-specified", "unknown"),
        ("switching-source", "switching"),
        ("between-doses", "between_doses"),
        ("standby", "standby"),
        ("powered-off", "powered_off"),
        ("", "unknown"),
    ],
)
def test_every_reason_of_a_stop_has_its_word_and_transitioning_wins_over_it(sent, reason):
    assert record(event(STOP, status="not-delivering", reason=sent))["reason"] == reason
    assert record(event(STOP, status="transitioning", reason=sent))["reason"] == "transitioning"


def test_a_completion_that_an_alarm_goes_with_is_still_a_completion():
    row = record(event(COMP, status="not-delivering", reason="alarming"))
    assert (row["kind"], row["reason"]) == ("delivery_complete", None)


def test_a_change_of_the_devices_time_without_both_times_is_a_loss_of_the_clock():
    row = record(event("MDC_EVT_DEVICE_TIME_CHANGED", source="", status="", rate=None))
    assert (row["reason"], row["pump_time"], row["new_time"]) == ("loss", DAY, DAY)


@pytest.mark.parametrize(
    ("phase", "kind"),
    [("start", "alarm_raised"), ("end", "alarm_cleared"), ("update", "other"), ("continue", "other"), ("escalate", "other")],
)
def test_a_phase_of_an_alarm_raises_or_clears_it_and_never_stops_delivery(phase, kind):
    row = record(alarm(phase))
    assert row["kind"] == kind
    assert not row["stops_delivery"]


@pytest.mark.parametrize(
    ("value", "alarm_class"),
    [
        ("196940^MDC_EVT_FLUID_LINE_OCCL^MDC", "occlusion"),
        ("196940", "occlusion"),
        ("0^MDC_EVT_FLUID_LINE_OCCL", "occlusion"),
        ("0^MDC_EVT_FLUID_LINE_AIR", "air"),
        ("197218^MDC_EVT_SYRINGE_BARREL_CAPTURE_FAULT^MDC", "other"),
        ("197334^MDC_EVT_VOL_INFUS_NEAR_COMP^MDC", "other"),
        ("196670^MDC_EVT_PUMP_GENERAL_ALARM^MDC", "other"),
    ],
)
def test_an_alarm_has_the_class_that_its_name_or_else_its_number_says(value, alarm_class):
    assert record(alarm(value=value))["alarm_class"] == alarm_class


def test_the_time_of_an_alarm_is_that_of_its_observation_before_that_of_its_request():
    assert record(alarm(observed=when(5)))["pump_time"] == DAY + timedelta(minutes=5)
    assert record(alarm())["pump_time"] == DAY


def test_an_alarm_with_an_mds_is_of_that_pump():
    assert record(alarm(device=DEVICE))["kind"] == "alarm_raised"
    assert fault(alarm(device="Q8^^00AA^EUI-64"))["code"] == "pump"


def test_a_snapshot_is_other_and_starts_nothing():
    assert record(snapshot(0, "infusing", "delivering"))["kind"] == "other"
    assert sessions(snapshot(0, "infusing", "delivering"), snapshot(60, "infusing", "delivering")) == []


def test_the_parameters_of_pca_are_a_settings_change_with_its_lockout():
    for value, unit in (("600", "264320^MDC_DIM_X_SEC^MDC^s^s^UCUM"), ("10", "264352^MDC_DIM_MIN^MDC^min^min^UCUM")):
        more = [
            obx("157989^MDC_TIME_LOCKOUT_BY_ANY_NAME^MDC", "1.1.5.1", value, unit, "NM"),
            obx("157988", "1.1.5.2", "4", "", "NM"),
            obx("157985", "1.1.5.3", "8", "264306^MDC_DIM_MILLI_G^MDC^mg^mg^UCUM", "NM"),
        ]
        row = record(event("MDC_EVT_PUMP_PROG_CLEARED", source="", status="", rate=None, more=more))
        assert (row["kind"], row["lockout_s"]) == ("settings_change", 600.0)
        assert '"dose_limit":"8 mg"' in row["detail"]
        assert '"max_doses_h":"4"' in row["detail"]


def test_amounts_are_of_the_group_of_the_event_and_a_sum_is_never_the_volume_of_a_delivery():
    more = [
        obx("157784^MDC_FLOW_FLUID_PUMP^MDC", "1.1.2.4", "3", ML_H, "NM"),
        obx("157784^MDC_FLOW_FLUID_PUMP^MDC", "1.1.4.4", "60", ML_H, "NM"),
        obx("157884^MDC_VOL_FLUID_TBI^MDC", "1.1.2.5", "100", ML, "NM"),
        obx("157884^MDC_VOL_FLUID_TBI^MDC", "1.1.4.5", "1.5", ML, "NM"),
        obx("157993^MDC_VOL_FLUID_DELIV_TOTAL^MDC", "1.1.2.7", "44", ML, "NM"),
    ]
    row = record(event(START, source="clinician", rate=None, more=more))
    assert (row["rate_ml_h"], row["programmed_ml"], row["volume_ml"]) == (60.0, 1.5, None)
    own = obx("157992^MDC_VOL_FLUID_DELIV_SEGMENT^MDC", "1.1.4.6", "1.25", ML, "NM")
    row = record(event(STOP, source="clinician", status="transitioning", more=[*more, own]))
    assert row["volume_ml"] == 1.25


def test_a_rate_that_is_not_told_or_in_another_unit_is_unknown_and_zero_is_zero():
    assert record(event(START, rate=None))["rate_ml_h"] is None
    other = [obx("158014^MDC_FLOW_FLUID_PUMP_CURRENT^MDC", "1.1.1.2", "2", "0^MDC_DIM_MICRO_G^MDC^ug^ug^UCUM", "NM")]
    assert record(event(START, rate=None, more=other))["rate_ml_h"] is None
    assert record(event(START, rate="0"))["rate_ml_h"] == 0.0
    assert record(event(START, rate="-3"))["rate_ml_h"] is None
    assert record(event(START, rate="NaN"))["rate_ml_h"] is None


def test_a_dose_keeps_the_unit_it_came_with():
    more = [obx("158003", "1.1.5.9", "0.5", "263890^MDC_DIM_MILLI_G^MDC^mg^mg^UCUM", "NM")]
    row = record(event(STOP, source="pca", status="transitioning", more=more))
    assert (row["dose"], row["dose_unit"]) == (0.5, "mg")


# --- names, numbers, and how lines are written -----------------------------------------------------------------------------------


def test_a_name_is_believed_before_its_number_and_a_number_where_there_is_no_known_name():
    assert record(event(STOP, code=197288, status="not-delivering"))["kind"] == "delivery_stop"
    assert record(event("", code=197288))["kind"] == "delivery_start"
    assert record(event("", code=197292, status="not-delivering"))["kind"] == "delivery_complete"
    assert record(event("MAKERS_OWN_WORD", code=197292, status="not-delivering"))["kind"] == "delivery_complete"


def test_the_term_of_an_observation_goes_by_its_name_too():
    usual = event(STOP, status="not-delivering", reason="alarming")
    misnumbered = usual.replace(b"|158006^MDC_DEV_PUMP_NOT", b"|158012^MDC_DEV_PUMP_NOT")
    assert record(misnumbered)["reason"] == "alarm"


@pytest.mark.parametrize("unit", ["265266", "0^MDC_DIM_MILLI_L_PER_HR", "^^^mL/h^mL/h^UCUM", "^^^ml/hr"])
def test_a_unit_is_known_by_any_of_its_names(unit):
    assert record(event(START).replace(ML_H.encode(), unit.encode()))["rate_ml_h"] == 2.0


def test_number_0_and_the_short_names_of_makers_are_read():
    usual = event(START, source="pca", status="kvo", rate="0.5")
    for change in (
        lambda m: m.replace(b"MDC_DEV_PUMP_", b"MDC_PUMP_"),
        lambda m: m.replace(b"|158005^", b"|0^").replace(b"|158016^", b"|0^").replace(b"|68487^", b"|0^").replace(b"|68488^", b"|0^"),
        lambda m: m.replace(b"158005^MDC_DEV_PUMP_CURRENT_DELIVERY_STATUS^MDC", b"158005^X_STATUS^MDC"),
        lambda m: m.replace(b"158016^MDC_DEV_PUMP_ACTIVE_SOURCES^MDC", b"158016"),
        lambda m: m.replace(b"^pump-delivery-status-kvo", b"9^pump-delivery-status-kvo^MDC"),
        lambda m: m.replace(b"^pump-source-info-pca", b"pump-source-info-pca"),
        lambda m: m.replace(
            b"|158005^MDC_DEV_PUMP_CURRENT_DELIVERY_STATUS^MDC", b"|7^ours^L^158005^MDC_DEV_PUMP_CURRENT_DELIVERY_STATUS^MDC"
        ),
    ):
        changed = change(usual)
        assert changed != usual
        assert {**record(changed), **_stood(usual)} == record(usual)


def _stood(one):
    row = record(one)
    return {name: row[name] for name in ("capture", "raw", "detail")}


def test_a_missing_separator_and_a_missing_result_status_change_nothing():
    usual = event(STOP, status="not-delivering", reason="alarming")
    for changed in (usual.replace(b"||||||R", b""), usual.replace(b"|R\r", b"R\r"), usual.replace(b"_REASON^MDC|", b"_REASON|")):
        assert changed != usual
        assert {**record(changed), **_stood(usual)} == record(usual)


def test_a_message_wrapped_over_two_lines_at_any_place_says_the_same():
    usual = event(START, source="secondary", rate="12.5", control="6358051206735492253")
    row, stood = record(usual), _stood(usual)
    for cut in range(9, len(usual)):
        line = usual[:cut].rpartition(b"\r")[2]
        if len(line) < 4 or line.startswith((b"PID", b"PV1")) or usual[cut : cut + 1] == b"\r":
            continue
        for end in (b"\r", b"\n", b"\r\n"):
            assert {**record(usual[:cut] + end + usual[cut:]), **stood} == row, line


def test_lines_may_end_in_any_way():
    usual = event(START)
    row = record(usual)
    for end in (b"\n", b"\r\n", b"\r\r\n"):
        assert {**record(usual.replace(b"\r", end)), **_stood(usual)} == row


def test_other_separators_are_those_of_the_header():
    usual = event(START)
    other = usual.replace(b"|", b"!").replace(b"^~\\&", b"#~\\&").replace(b"^", b"#")
    assert record(other)["source"] == "primary"
    assert record(other)["rate_ml_h"] == 2.0
    assert record(other)["pump_time"] == DAY


def test_nothing_about_the_patient_is_in_a_record_or_a_fault_however_it_is_wrapped():
    good, bad = event(START), event(START, status="")
    for one in (good, bad):
        for data in (one, one.replace(b"||Hidden", b"||\rHidden"), one.replace(b"\r", b"\n")):
            found = pcd.decode(capture(data))
            rows = [*found.records.to_pylist(), *found.faults.to_pylist()]
            assert len(rows) == 1
            assert b"Hidden" not in rows[0]["raw"]
            assert b"SECRET" not in rows[0]["raw"]
            assert b"MDC_EVT_PUMP_DELIV_START" in rows[0]["raw"]
            assert "Hidden" not in str(rows[0])


# --- time ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("time", "utc"),
    [
        ("20260302080000+0000", DAY),
        ("20260302020000-0600", DAY),
        ("20260302134500+0545", DAY),
        ("20260302080000.25+0000", DAY + timedelta(milliseconds=250)),
        ("20260302080000.2509+0000^S", DAY + timedelta(milliseconds=250)),
    ],
)
def test_a_time_is_read_in_its_own_zone_and_anchors_itself(time, utc):
    found = pcd.decode(capture(event(START, time=time)))
    (row,), (told,) = found.records.to_pylist(), found.anchors.to_pylist()
    assert row["pump_time"] == told["pump_clock"] == utc
    assert told["utc"] == utc.replace(tzinfo=UTC)
    assert told["after"] == row["record_key"]


def test_a_time_without_a_zone_is_in_that_of_the_header_or_of_the_clock_that_was_read_beside_it_or_unreadable():
    bare = when(zone="")
    assert record(event(START, time=bare, sent=when(0, "-0500")))["pump_time"] == DAY + timedelta(hours=5)
    read = Anchor(pump_clock=DAY, utc=DAY.replace(tzinfo=UTC) + timedelta(hours=6, seconds=7))
    assert record(event(START, time=bare), anchor=read)["pump_time"] == DAY + timedelta(hours=6)
    assert fault(event(START, time=bare))["code"] == "time"


@pytest.mark.parametrize(
    "time", ["", "2026", "202603020800+0000", "20260230080000+0000", "20260302080060+0000", "00010101000000+1400", "x"]
)
def test_a_time_that_cannot_be_or_does_not_tell_the_second_gives_no_record(time):
    assert fault(event(START, time=time, sent=when()))["code"] == "time"


def test_a_message_sent_well_before_what_it_tells_anchors_nothing():
    assert pcd.decode(capture(event(START, 0, sent=when(-0.5)))).anchors.num_rows == 1
    assert pcd.decode(capture(event(START, 0, sent=when(-5)))).anchors.num_rows == 0
    (one,) = sessions(event(START, 0, sent=when(-5)), event(STOP, 30, status="not-delivering", control="2", sent=when(20)))
    assert (one["infusing_s"], one["time_quality"]) == (1800, "unknown")
    assert "CLOCK_UNCERTAIN" in one["flags"]


def test_a_zone_that_changes_is_no_step_of_the_clock():
    (one,) = sessions(
        event(START, time="20260308063000-0500"), event(STOP, status="not-delivering", control="2", time="20260308080000-0400")
    )
    assert (one["infusing_s"], one["time_quality"]) == (1800, "exact")


def test_a_change_of_the_devices_time_is_a_cut():
    change = event("MDC_EVT_DEVICE_TIME_CHANGED", 20, source="", status="", rate=None, control="2")
    (one,) = sessions(event(START, 0), change, event(STOP, 40, status="not-delivering", control="3"))[:1]
    assert "NO_STOP" in one["flags"]


# --- the segment rules of IPEC -----------------------------------------------------------------------------------------------------


def test_a_change_of_rate_leaves_no_gap():
    assert minutes_of(started(0), moved_on(20), started(20, rate="5"), stopped(50)) == (50, 0, 0, 0, [])


def test_a_change_of_the_volume_to_be_infused_is_a_stop_and_a_start():
    assert minutes_of(started(0), stopped(20), started(23), stopped(50)) == (47, 0, 0, 3, [])


def test_a_bolus_during_a_continuous_run_leaves_no_gap():
    steps = started(0), moved_on(20), started(20, "clinician", rate="60"), moved_on(22, "clinician"), started(22), stopped(50)
    assert minutes_of(*steps) == (50, 0, 0, 0, [])


def test_a_loading_dose_is_delivery_and_goes_over_into_the_primary():
    assert minutes_of(started(0, "loading", rate="60"), moved_on(5, "loading"), started(5), stopped(50)) == (50, 0, 0, 0, [])


def test_kvo_after_a_completion_is_not_infusion_and_its_stop_stops_it():
    messages = log_messages(started(0), moved_on(30, name=COMP), kvo(30), stopped(40), started(45), stopped(60))
    assert [source for _, source in kinds(log_of(*messages))] == ["primary", "primary", "kvo", "kvo", "primary", "primary"]
    assert minutes_of(started(0), moved_on(30, name=COMP), kvo(30), stopped(40), started(45), stopped(60)) == (45, 10, 0, 5, [])


def test_kvo_that_goes_over_into_the_primary_is_stopped_by_the_transition():
    assert minutes_of(started(0), moved_on(30, name=COMP), kvo(30), moved_on(40), started(40), stopped(60)) == (50, 10, 0, 0, [])


def test_a_stop_by_an_alarm_is_a_stop_and_the_time_until_the_restart_is_alarm_time():
    messages = log_messages(started(0), stopped(20, reason="alarming"), started(26), stopped(50))
    raised, cleared = alarm("start", minutes=20, control="a1"), alarm("end", minutes=25, control="a2")
    (one,) = sessions(*messages, raised, cleared)
    assert (one["infusing_s"], one["alarm_s"], one["paused_s"]) == (44 * 60, 6 * 60, 0)


def test_an_alarm_alone_stops_nothing():
    (one,) = sessions(event(START, 0), alarm("start", minutes=20, control="a"), event(STOP, 30, status="not-delivering", control="2"))
    assert one["infusing_s"] == 1800


def test_between_the_steps_of_an_intermittent_therapy_nothing_infuses():
    steps = [started(0, "intermittent"), stopped(10, "intermittent", "between-doses")]
    assert minutes_of(*steps, started(30, "intermittent"), stopped(40, "intermittent")) == (20, 0, 0, 20, [])


def test_a_piggyback_interrupts_the_primary_and_hands_back_to_it():
    steps = (
        started(0),
        stopped(20, reason="switching-source"),
        started(20, "secondary"),
        completed(35, "secondary"),
        started(35),
        stopped(50),
    )
    assert minutes_of(*steps) == (50, 0, 0, 0, [])


def test_doses_of_pca_alone_are_deliveries_of_their_own_length():
    assert minutes_of(started(0, "pca"), stopped(1, "pca"), started(15, "pca"), stopped(17, "pca")) == (3, 0, 0, 14, [])


def test_a_stop_that_names_no_source_stops_whatever_runs():
    bare = event(STOP, 30, source="", status="", rate=None, control="2", more=())
    assert record(bare)["source"] is None
    assert sessions(event(START, 0, source="secondary"), bare)[0]["infusing_s"] == 1800


def test_the_segment_volume_that_does_not_fit_rate_and_time_is_seen():
    told = obx("157992^MDC_VOL_FLUID_DELIV_SEGMENT^MDC", "1.1.2.6", "9", ML, "NM")
    (one,) = sessions(event(START, 0), event(STOP, 60, status="not-delivering", control="2", more=[told]))
    assert "VOLUME_MISMATCH" in one["flags"]


# --- order, repetition, conflict -----------------------------------------------------------------------------------------------------


def test_within_one_second_transitioning_stops_and_completions_come_first_then_the_time_of_sending_then_the_control_id():
    at = {"time": when(10)}
    order = [
        event(STOP, status="transitioning", control="90", sent=when(12), **at),
        event(START, control="91", sent=when(10.5), **at),
        event(STOP, status="not-delivering", control="9", sent=when(11), **at),
        event(START, control="10", sent=when(11), **at),
        event("MDC_EVT_COMM_STATUS_CHANGE", source="", status="", rate=None, control="11", sent=when(11), **at),
    ]
    names = [row["record_key"].rpartition("|")[2] for row in log_of(*reversed(order)).events.to_pylist()]
    assert names == ["90", "91", "9", "10", "11"]


def test_a_completion_comes_before_the_start_of_its_second_whatever_their_control_ids():
    start, end = event(START, source="primary", control="1"), event(COMP, source="secondary", status="not-delivering", control="2")
    assert [kind for kind, _ in kinds(log_of(start, end))] == ["delivery_complete", "delivery_start"]


def test_a_fraction_of_a_second_does_not_bring_a_start_before_the_stop_it_follows():
    start, stop = (
        event(START, control="1", time="20260302080000+0000"),
        event(STOP, status="transitioning", control="2", time="20260302080000.9+0000"),
    )
    assert [kind for kind, _ in kinds(log_of(start, stop))] == ["delivery_stop", "delivery_start"]


def test_the_same_message_again_is_one_event_though_it_was_sent_later():
    once, again = event(START, sent=when(1)), event(START, sent=when(9))
    log = log_of(again, once, once)
    (row,) = log.events.to_pylist()
    assert not row["conflict"]
    assert log.event_of_record.to_pylist() == [row["event_id"]] * 3


def test_the_same_control_id_of_another_sender_is_another_event():
    assert log_of(event(START, 0), event(STOP, 1, status="not-delivering", sender="OTHER")).events.num_rows == 2


def test_the_same_control_id_with_other_content_is_a_conflict_that_the_later_time_wins_and_holds_its_session():
    first, second = event(STOP, 30, status="not-delivering", control="2"), event(STOP, 40, status="not-delivering", control="2")
    for order in ([first, second], [second, first, first]):
        log = log_of(event(START, 0), *order)
        assert [row["conflict"] for row in log.events.to_pylist()] == [False, True]
        assert "conflicts_with" in log.events.to_pylist()[1]["detail"]
        assert len(log.anchors) == 2
        (one,) = derive(log, orders(pump_id=PUMP), FactPolicy()).sessions.to_pylist()
        assert one["infusing_s"] == 2400
        assert "RECORD_CONFLICT" in one["flags"]


@pytest.mark.parametrize("minutes", range(31, 39))
def test_of_two_contents_the_later_wins_whichever_is_the_greater_hash(minutes):
    two = [event(STOP, at, status="not-delivering", control="2") for at in (30, minutes)]
    assert log_of(*two).events.to_pylist()[0]["pump_time"] == DAY + timedelta(minutes=minutes)


def therapy():
    steps = [started(0), moved_on(20), started(20, "pca"), moved_on(22, "pca"), started(22), moved_on(50, name=COMP), kvo(50), stopped(60)]
    more = [snapshot(35, "infusing", "delivering"), snapshot(70, "infusing", "delivering"), alarm("start", minutes=40, control="a")]
    broken = event(START, 44, status="", control="b")
    return [*log_messages(*steps), *more, broken, event(STOP, 60, status="not-delivering", control="0007"), event(START, 90, control="z")]


def same(log):
    return log.events.to_pylist(), log.anchors, sorted(set(log.event_of_record.to_pylist()))


THERAPY = same(log_of(*therapy()))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_order_repetition_and_split_of_the_captures_gives_the_same_log(data):
    messages = data.draw(st.permutations(therapy()))
    messages += data.draw(st.lists(st.sampled_from(messages), max_size=5))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(messages)), max_size=6)))
    parts = [messages[low:high] for low, high in zip([0, *cuts], [*cuts, len(messages)], strict=True)]
    framed = data.draw(st.booleans())
    captures = [capture(*(pcd.framed(one) if framed else one for one in part)) for part in parts]
    assert same(assembled(*captures)) == THERAPY


# --- what cannot be read, and what is missing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("broken", "code"),
    [
        (event(START, status=""), "status"),
        (event(START, status="not-delivering"), "status"),
        (event(START, more=[obx("184519^MDC_PUMP_INFUSING_STATUS^MDC", "1.1.1.1", "^pump-status-not-infusing")]), "status"),
        (event(START, source="unheard-of"), "source"),
        (event(STOP, source="primary~^pump-source-info-pca~x").replace(b"1.1.2.0", b"1.1.9.0"), "source"),
        (event(COMP, source="", status=""), "source"),
        (event("MDC_EVT_PUMP_DELIV_STOQ"), "event"),
        (event("", code=0), "event"),
        (event(START).replace(b"ATTR_EVT_COND", b"ATTR_EVT_CONX").replace(b"68487", b"0"), "event"),
        (event(START, more=[obx("68487^MDC_ATTR_EVT_COND^MDC", "1.0.0.9", f"0^{STOP}^MDC")]), "event"),
        (event(START, control=""), "control_id"),
        (event(START, trigger="R99"), "type"),
        (b"MSI" + event(START)[3:], "header"),
    ],
)
def test_a_message_that_may_hide_a_start_or_a_stop_is_a_hole_at_its_time_with_its_bytes(broken, code):
    row = fault(broken)
    assert (row["code"], row["hole"]) == (code, True)
    assert row["seq"] == int(DAY.replace(tzinfo=UTC).timestamp() * 1000)
    assert row["raw"] in broken or b"SECRET" not in row["raw"]
    assert [
        kind for kind, _ in kinds(log_of(event(START, -30, control="a"), broken, event(STOP, 30, control="b", status="not-delivering")))
    ] == [
        "delivery_start",
        "data_corruption",
        "delivery_stop",
    ]


@pytest.mark.parametrize(
    "broken",
    [alarm().replace(b"196616^MDC_EVT_ALARM", b"1^X"), snapshot(0, "infusing", control=""), event(START).replace(b"ORU^R42", b"ACK^R42")],
)
def test_what_can_hide_no_delivery_is_kept_and_is_no_hole(broken):
    row = fault(broken)
    assert not row["hole"]
    assert kinds(log_of(event(START, -30, control="a"), broken))[1:] == []


def test_behind_a_hole_it_is_not_known_that_kvo_runs():
    messages = log_messages(started(0), moved_on(30, name=COMP), kvo(30), stopped(50))
    broken = event(START, 40, status="", control="b")
    assert kinds(log_of(*messages, broken))[-2:] == [("data_corruption", None), ("delivery_stop", "primary")]
    assert any("NO_START" in one["flags"] for one in sessions(*messages, broken))


def test_a_hole_heals_when_the_message_comes_again_readable():
    before, after = event(START, 0, control="1"), event(START, 40, control="3")
    whole = event(STOP, 30, control="2", status="not-delivering")
    broken = whole.replace(b"68487^MDC_ATTR_EVT_COND", b"0^MDC_ATTR_X")
    assert ("data_corruption", None) in kinds(log_of(before, broken, after))
    healed = log_of(before, broken, after, whole)
    assert kinds(healed) == kinds(log_of(before, whole, after))
    assert healed.events.to_pylist() == log_of(before, whole, after).events.to_pylist()


def test_bytes_without_a_time_stand_between_their_neighbours_in_the_capture():
    first, last = event(START, 0, control="1"), event(STOP, 30, control="2", status="not-delivering")
    junk = pcd.framed(b"garbage")[1:]
    log = assembled(capture(pcd.framed(first), junk, pcd.framed(last)))
    assert [kind for kind, _ in kinds(log)] == ["delivery_start", "data_corruption", "delivery_stop"]
    log = assembled(capture(junk, pcd.framed(first), pcd.framed(last)))
    assert [kind for kind, _ in kinds(log)] == ["data_corruption", "delivery_start", "delivery_stop"]
    log = assembled(capture(pcd.framed(first), pcd.framed(last), junk))
    assert [kind for kind, _ in kinds(log)] == ["delivery_start", "delivery_stop", "data_corruption"]


def test_a_frame_that_does_not_end_gives_no_record_though_its_event_can_be_read():
    cut = pcd.framed(event(START))[:-30]
    row = fault(cut)
    assert (row["code"], row["hole"]) == ("frame", True)


def test_a_damaged_header_costs_its_own_message_and_not_the_one_before():
    first, second = event(START, 0, control="1"), event(STOP, 30, control="2", status="not-delivering")
    found = pcd.decode(capture(first, b"XSH" + second[3:]))
    assert [row["kind"] for row in found.records.to_pylist()] == ["delivery_start"]
    assert [(row["code"], row["hole"]) for row in found.faults.to_pylist()] == [("header", True)]


def test_a_message_of_another_pump_is_no_record_and_no_hole_of_this_one():
    row = fault(event(START, device="Q8^^00AA^EUI-64"))
    assert (row["code"], row["hole"]) == ("pump", False)


def test_a_message_that_names_no_pump_is_of_the_pump_it_came_with_and_of_none_without():
    nameless = event(START, device="")
    assert record(nameless)["pump_id"] == PUMP
    row = fault(nameless, pump="pcd:unknown")
    assert (row["code"], row["hole"]) == ("device", False)
    assert not fault(b"noise", pump="pcd:unknown")["hole"]


def test_an_eui_that_two_pumps_share_does_not_make_them_one():
    named = pcd.read_files([("f", event(START) + event(START, device="P8^^00AA^EUI-64"))])
    assert [one.pump_id for one in named] == [PUMP, "pcd:P8/00AA"]


CONTRADICTIONS = [
    ([started(0)], ("not-infusing", ""), True),
    ([started(0)], ("infusing", "delivering"), False),
    ([started(0)], ("infusing", ""), False),
    ([started(0)], ("infusing", "kvo"), True),
    ([started(0, rate="0")], ("not-infusing", ""), False),
    ([started(0), stopped(20)], ("infusing", "delivering"), True),
    ([started(0), stopped(20)], ("infusing", "kvo"), True),
    ([started(0), stopped(20)], ("not-infusing", "not-delivering"), False),
    ([started(0), moved_on(20, name=COMP), kvo(20)], ("infusing", "kvo"), False),
    ([started(0), moved_on(20, name=COMP), kvo(20)], ("infusing", "delivering"), True),
    ([started(0), moved_on(20, name=COMP), kvo(20)], ("not-infusing", ""), True),
    ([started(0), kvo(20)], ("infusing", "kvo"), False),
    ([], ("infusing", "delivering"), False),
    ([(0, "MDC_EVT_PATIENT_CHANGE", {"source": "", "status": "", "rate": None})], ("infusing", "delivering"), False),
    ([started(0), (20, "MDC_EVT_PATIENT_CHANGE", {"source": "", "status": "", "rate": None})], ("infusing", "delivering"), False),
    ([started(0), (20, "MDC_EVT_PATIENT_CHANGE", {"source": "", "status": "", "rate": None})], ("not-infusing", ""), False),
    ([started(0), (20, "MDC_EVT_DEVICE_TIME_CHANGED", {"source": "", "status": "", "rate": None})], ("not-infusing", ""), False),
]


@pytest.mark.parametrize(("steps", "shown", "missing"), CONTRADICTIONS)
def test_a_snapshot_that_contradicts_what_runs_shows_that_a_message_is_missing_before_it(steps, shown, missing):
    found = kinds(log_of(*log_messages(*steps), snapshot(40, *shown)))
    assert [kind for kind, _ in found[len(steps) :]] == (["data_gap", "other"] if missing else ["other"])


def test_a_snapshot_is_not_held_against_a_start_or_stop_of_the_same_moment():
    assert ("data_gap", None) not in kinds(log_of(*log_messages(started(0)), snapshot(0.1, "not-infusing")))
    assert ("data_gap", None) not in kinds(log_of(*log_messages(started(0), stopped(30)), snapshot(29.9, "not-infusing")))
    assert ("data_gap", None) in kinds(log_of(*log_messages(started(0), stopped(30)), snapshot(29, "not-infusing")))


def test_a_missing_stop_that_a_snapshot_shows_holds_the_session_and_claims_only_what_was_proved():
    messages = [*log_messages(started(0)), snapshot(20, "infusing", "delivering"), snapshot(40, "not-infusing")]
    later = event(START, 200, control="9"), event(STOP, 230, control="99", status="not-delivering")
    first, second = sorted(sessions(*messages, *later), key=lambda one: one["start"])
    assert (first["infusing_s"], first["flags"][0]) == (1200, "NO_STOP")
    assert (second["infusing_s"], second["flags"]) == (1800, ["GAPS_INVISIBLE"])


def test_a_missing_start_that_a_snapshot_shows_leaves_what_follows_unknown():
    messages = [*log_messages(started(0), stopped(20)), snapshot(40, "infusing", "delivering")]
    stop = event(STOP, 60, control="9", status="not-delivering")
    first, second = sorted(sessions(*messages, stop), key=lambda one: one["start"])
    assert first["infusing_s"] == 1200
    assert (second["infusing_s"], second["unknown_s"]) == (0, 1200)
    assert "NO_START" in second["flags"]


def test_the_missing_message_heals_the_hole_that_a_snapshot_showed():
    messages = log_messages(started(0), stopped(20), started(30), stopped(60))
    shown = snapshot(40, "infusing", "delivering")
    assert ("data_gap", None) in kinds(log_of(*messages[:2], messages[3], shown))
    assert ("data_gap", None) not in kinds(log_of(*messages, shown))


# --- files, frames, answers ----------------------------------------------------------------------------------------------------------


def test_a_file_gives_a_capture_for_each_message_whatever_stands_around_them():
    one, two = event(START, 0, control="1"), event(STOP, 30, control="2", status="not-delivering")
    plain = pcd.read_files([("f", one + two)])
    batch = rb"FHS|^~\&|X" + b"\r" + rb"BHS|^~\&|X" + b"\r" + one + two + b"BTS|2\rFTS|1\r"
    for data in (pcd.framed(one) + pcd.framed(two), b"\xef\xbb\xbf" + one + b"\r\n\r\n" + two, one.replace(b"\r", b"\n") + two):
        found = pcd.read_files([("f", data)])
        assert [[row["kind"] for row in pcd.decode(c).records.to_pylist()] for c in found] == [["delivery_start"], ["delivery_stop"]]
    assert [c.data for c in plain] == [one, two]
    assert same(assembled(*pcd.read_files([("f", batch)])))[0][0]["kind"] == "delivery_start"
    assert pcd.decode(capture(batch)).faults.num_rows == 0
    assert pcd.recognise("f", batch)
    assert all(c.pump_id == PUMP for c in plain)


def test_what_in_a_file_is_no_message_is_kept():
    (junk, good) = pcd.read_files([("f", b"hello\r" + event(START))])
    assert (junk.pump_id, good.pump_id) == ("pcd:unknown", PUMP)
    assert pcd.decode(junk).faults.to_pylist()[0]["raw"] == b"hello"
    assert pcd.read_files([("f", event(START, device=""))], pump_id="pcd:given")[0].pump_id == "pcd:given"


def test_only_device_messages_are_recognised():
    assert not pcd.recognise("f", rb"MSH|^~\&|A|B|C|D|20260302||ADT^A01|1|P|2.6")
    assert not pcd.recognise("f", b'{"pumpledger": 1}')
    assert not pcd.recognise("f", b"")
    assert families()["pcd"].SHEET.family == "pcd"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=40).map(lambda b: b.replace(b"\x0b", b"").replace(b"\x1c", b"")), max_size=6), st.randoms())
def test_frames_come_out_of_a_stream_as_they_went_in_however_it_is_cut(messages, chance):
    stream = b"".join(pcd.framed(one) for one in messages)
    got, rest, outside = [], b"", b""
    while stream:
        size = chance.randint(1, len(stream))
        frames = pcd.unframed(rest + stream[:size])
        got, rest, outside, stream = got + frames.messages, frames.rest, outside + frames.outside, stream[size:]
    assert (got, rest, outside) == (messages, b"", b"")


def test_bytes_outside_of_frames_are_not_lost():
    frames = pcd.unframed(b"noise\x0bone\x1c\rmore\x0bt")
    assert (frames.messages, frames.rest) == ([b"one"], b"\x0bt")
    assert b"noise" in frames.outside
    assert b"more" in frames.outside


def test_an_answer_goes_back_to_the_sender_and_names_the_message():
    at = datetime(2026, 3, 2, 9, tzinfo=UTC)
    for wrapped in (event(START, control="635805"), event(START, control="635805").replace(b"635805", b"635\r805")):
        header, accepted = pcd.answer(wrapped, accepted=True, at=at).decode().split("\r")[:2]
        fields = header.split("|")
        assert fields[2:6] == ["US", "US", "GATE^01^EUI-64", "MAKER"]
        assert (fields[6], fields[8], fields[10], fields[11]) == ("20260302090000+0000", "ACK^R42^ACK", "P", "2.6")
        assert accepted == "MSA|AA|635805"
    refused = pcd.answer(event(START), accepted=False, at=at, why="no room | on ^ the\rdisk").decode().split("\r")
    assert refused[1] == "MSA|AE|1|no room on the disk"
    assert refused[2].startswith("ERR|")
    assert pcd.answer(event(START), accepted=True, at=at) == pcd.answer(event(START), accepted=True, at=at)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_whatever_comes_is_answered(data):
    assert pcd.answer(data, accepted=False, at=datetime(2026, 1, 1, tzinfo=UTC), why="?").startswith(b"MSH")


STREAMS = [
    *(pcd.framed(one) if number % 3 == 0 else one for number, one in enumerate(therapy())),
    pcd.framed(event(START, 200, control="20", sender="OTHER")),
    snapshot(210, "infusing", "delivering"),
    b"noise without a time\r",
    b"\x0b" + event(STOP, 220, control="21")[:-1] + b"\x1c\r",
    event("MDC_EVT_PUMP_DELIV_UNHEARD_OF", 230, control="22"),
    b"\xef\xbb\xbf",
    b"\r\n\r\n",
    b"\x0b",
    rb"BHS|^~\&|X" + b"\r",
    b"BTS|2\r",
]
"""Messages, and what stands between them."""


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(STREAMS), min_size=1, max_size=8))
def test_every_byte_of_a_file_is_in_one_of_its_captures_in_their_order(pieces):
    data = b"".join(pieces)
    found = pcd.read_files([("f", data)], pump_id=PUMP)
    assert b"".join(one.data for one in found) == (data if found else b"")
    whole, parts = pcd.decode(capture(data)), joined(pcd.decode(one) for one in found if one.pump_id == PUMP)
    assert parts.records.drop_columns(["capture", "offset"]).equals(whole.records.drop_columns(["capture", "offset"]))


@settings(max_examples=120, deadline=None)
@given(st.lists(st.sampled_from(STREAMS), min_size=2, max_size=10), st.integers(700, 4000), st.none() | st.just(-300))
def test_the_parts_of_a_capture_give_the_log_of_the_whole(pieces, size, zone):
    clock = zone and Anchor(pump_clock=datetime(2026, 3, 2, 3), utc=datetime(2026, 3, 2, 8, tzinfo=UTC))
    one = capture(b"".join(pieces), anchor=clock)
    try:
        parts = pcd.split(one, size)
    except InputError:
        assert any(piece not in STREAMS[: len(therapy()) + 2] or len(piece) > size for piece in pieces)
        return
    assert b"".join(part.data for part in parts) == one.data
    assert max(len(part.data) for part in parts) <= size
    assert {(part.pump_id, part.model, part.part, part.anchor) for part in parts} == {(one.pump_id, one.model, one.part, one.anchor)}
    assert parts == [one] or len(one.data) > size
    assert same(assembled(*parts)) == same(assembled(one))


def test_a_capture_is_split_between_whole_messages_and_one_message_is_never_cut():
    messages = [event(START if n % 2 else STOP, n, control=str(n), status="delivering" if n % 2 else "not-delivering") for n in range(60)]
    size = max(map(len, messages)) + 3
    for framed in (lambda one: one, pcd.framed):
        one = capture(*map(framed, messages))
        parts = pcd.split(one, size)
        assert [part.data for part in parts] == list(map(framed, messages))
        assert pcd.split(one, len(one.data)) == [one]
    with pytest.raises(InputError, match="must stay whole"):
        pcd.split(one, size - 100)


# --- captures read together -----------------------------------------------------------------------------------------------------------

OTHERS = [
    *STREAMS,
    *(one.replace(b"MSH|^~\\&|", header) for one in therapy()[:4] for header in (b"MSH|$~\\&|", b"MSH|^|", b"MSH|^\\~&|")),
    event(START, 240, control="24").replace(b"|", b"#"),
    event(START, 250, control="25", time="20260302121000"),
    snapshot(260, "infusing", "kvo").replace(b"\r", b"\r\n"),
    alarm(minutes=270, control="27"),
]
"""Messages of one pump, some of which say with the same lines something else, for their headers name other separators."""


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(OTHERS), st.sampled_from((PUMP, PUMP, "pcd:unknown")), st.none() | st.just(-300)), max_size=12))
def test_captures_read_together_give_what_each_gives_alone(pieces):
    clock = Anchor(pump_clock=datetime(2026, 3, 2, 3), utc=datetime(2026, 3, 2, 8, tzinfo=UTC))
    some = [capture(data, pump=pump, anchor=zone and clock) for data, pump, zone in pieces]
    assert pcd.decode_all(some) == joined(pcd.decode(one) for one in some)


def test_ever_new_lines_are_read_as_those_that_come_again():
    terms = ["184514^MDC_DRUG_NAME_LABEL^MDC", "184516^MDC_PUMP_DRUG_LIBRARY_CARE_AREA^MDC", "158012^MDC_PUMP_SOURCE_CHANNEL_LABEL^MDC"]
    some = [capture(message(*(obx(term, "1.1.2.9", str(n)) for term in terms), trigger="R01", control=str(n))) for n in range(6000)]
    assert pcd.decode_all(some) == joined(pcd.decode_all(some[at : at + 100]) for at in range(0, len(some), 100))


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=20))
def test_a_detail_is_written_as_every_detail_is(text):
    rows = pcd.decode(capture(event(START, more=[obx("184514^MDC_DRUG_NAME_LABEL^MDC", "1.1.2.9", text)]))).records.to_pylist()
    assert [row["detail"] for row in rows] == [dump_detail(json.loads(row["detail"])) for row in rows]


# --- bytes that are not what they should be --------------------------------------------------------------------------------------------

WHOLE = [*therapy(), event("MDC_EVT_PUMP_PROG_CLEARED", 5, more=[obx("157989", "1.1.5.1", "600", "264320^MDC_DIM_X_SEC")])]


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.binary(max_size=400), st.binary(max_size=60).map(lambda b: b"MSH|^~\\&|" + b)))
@example(b"BHS")
def test_random_bytes_never_raise_and_are_records_or_faults(data):
    for pump in (PUMP, "pcd:unknown"):
        found = pcd.decode(capture(data, pump=pump))
        if data.strip(b"\r\n\t \x0b\x1c\xef\xbb\xbf"):
            assert found.records.num_rows + found.faults.num_rows
        pcd.assemble(pump, found.records, found.faults, found.anchors)
    pcd.read_files([("f", data)])
    pcd.recognise("f", data)


@settings(max_examples=150, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 12))
def test_damaged_messages_never_raise_and_what_they_give_is_in_the_vocabulary(chance: random.Random, damages: int):
    data = bytearray(b"".join(chance.choice((lambda m: m, pcd.framed))(one) for one in chance.sample(WHOLE, 4)))
    for _ in range(damages):
        at = chance.randrange(len(data))
        match chance.randrange(3):
            case 0:
                data[at] = chance.randrange(256)
            case 1:
                del data[at : at + chance.randint(1, 40)]
            case 2:
                data[at:at] = bytes(chance.choices(b"|^~\\&\r\n\x0b\x1cMSHOBX0", k=chance.randint(1, 5)))
    log = assembled(capture(bytes(data)))
    sources = {row["source"] for row in log.events.to_pylist()}
    assert sources <= {None, "primary", "secondary", "pca", "loading", "clinician", "intermittent", "kvo"}
    derive(log, orders(pump_id=PUMP), FactPolicy())


def test_leaving_out_any_byte_of_a_stop_never_lets_its_delivery_run_on_unseen():
    start, stop = event(START, 0, control="1"), event(STOP, 30, control="2", status="not-delivering", device="")
    later = event(START, 100, control="3"), event(STOP, 110, control="4", status="not-delivering")
    for at in range(0, len(stop), 3):
        for one in sessions(start, stop[:at] + stop[at + 1 :], *later):
            if one["infusing_s"] > 2400:
                assert set(one["flags"]) & {"NO_STOP", "NO_START", "LOG_GAP", "CLOCK_UNCERTAIN", "SESSION_OPEN"}, at
