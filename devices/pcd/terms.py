"""The nomenclature, as data (docs/pump-formats.md §2, §6): terms, events, sources, reasons, alarms and units by name and number."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

from devices.contract import AlarmClass, Kind, Source

_TERMS = (
    ("event", 68487, "ATTR_EVT_COND"),
    ("event_source", 68488, "ATTR_EVT_SOURCE"),
    ("infusing", 184519, "PUMP_INFUSING_STATUS"),
    ("flow", 158014, "FLOW_FLUID_PUMP_CURRENT"),
    ("sources", 158016, "PUMP_ACTIVE_SOURCES"),
    ("status", 158005, "PUMP_CURRENT_DELIVERY_STATUS"),
    ("reason", 158006, "PUMP_NOT_DELIVERING_REASON"),
    ("mode", 158008, "PUMP_PROGRAM_DELIVERY_MODE"),
    ("label", 158012, "PUMP_SOURCE_CHANNEL_LABEL"),
    ("rate", 157784, "FLOW_FLUID_PUMP"),
    ("dose_rate", 157924, "RATE_DOSE"),
    ("vtbi", 157884, "VOL_FLUID_TBI"),
    ("vtbi_remaining", 157872, "VOL_FLUID_TBI_REMAIN"),
    ("segment_volume", 157992, "VOL_FLUID_DELIV_SEGMENT"),
    ("total_volume", 157993, "VOL_FLUID_DELIV_TOTAL"),
    ("time_programmed", 157996, ""),
    ("time_remaining", 157916, "TIME_PD_REMAIN"),
    ("dose_tbi", 157999, ""),
    ("dose_remaining", 158000, ""),
    ("segment_dose", 158003, ""),
    ("total_dose", 158001, ""),
    ("drug", 184514, "DRUG_NAME_LABEL"),
    ("concentration", 157760, "CONC_DRUG"),
    ("care_area", 184516, "PUMP_DRUG_LIBRARY_CARE_AREA"),
    ("library", 184520, "PUMP_DRUG_LIBRARY_NAME"),
    ("library_version", 184517, "PUMP_DRUG_LIBRARY_VERSION"),
    ("dose_limit", 157985, ""),
    ("max_doses_h", 157988, ""),
    ("lockout", 157989, ""),
    ("patient_dose", 158017, ""),
    ("loading_dose", 158018, ""),
    ("clinician_dose", 158019, ""),
    ("alarm", 196616, "EVT_ALARM"),
    ("alarm_source", 68480, "ATTR_ALERT_SOURCE"),
    ("phase", 68481, "ATTR_EVENT_PHASE"),
    ("alarm_state", 68482, "ATTR_ALARM_STATE"),
    ("inactivation", 68483, "ATTR_ALARM_INACTIVATION_STATE"),
    ("priority", 68484, "ATTR_ALARM_PRIORITY"),
    ("alarm_type", 68485, "ATTR_ALERT_TYPE"),
    ("alarm_text", 68546, "ATTR_ALERT_TEXT"),
)
"""What is called how here: our word, number, MDC name without MDC_ and with PUMP_ for DEV_PUMP_ ("" where no source gives it)."""

_WORD_OF_NAME = {name: word for word, _, name in _TERMS if name}
_WORD_OF_CODE = {str(code): word for word, code, _ in _TERMS}

EVENTS_BY_NAME: Mapping[str, Kind] = {
    "EVT_PUMP_DELIV_START": Kind.DELIVERY_START,
    "EVT_PUMP_DELIV_STOP": Kind.DELIVERY_STOP,
    "EVT_PUMP_DELIV_COMP": Kind.DELIVERY_COMPLETE,
    "EVT_COMM_STATUS_CHANGE": Kind.DEVICE_LINK,
    "EVT_PUMP_PROG_CLEARED": Kind.SETTINGS_CHANGE,
    "EVT_PATIENT_CHANGE": Kind.NEW_PATIENT,
    "EVT_PATIENT_ID_CHANGE": Kind.NEW_PATIENT,
    "EVT_PATIENT_PARAMETER_CHANGE": Kind.SETTINGS_CHANGE,
    "EVT_PUMP_VOL_COUNTERS_CLEARED": Kind.COUNTERS_CLEARED,
    "EVT_DEVICE_TIME_CHANGED": Kind.CLOCK_CHANGE,
}
EVENT_OF_CODE = {"197288": "EVT_PUMP_DELIV_START", "197292": "EVT_PUMP_DELIV_COMP"}
ABOUT_DELIVERY = "PUMP_DELIV"

SOURCES = {one.value: one for one in (*Source,) if one not in (Source.BASAL, Source.KVO)}
_SOURCE_HEAD = re.compile(r"PUMP_INFUSATE_SOURCE_([A-Z]+?)(?:_CHAN)?")
_DOSE_HEADS = {"patient_dose": Source.PCA, "loading_dose": Source.LOADING, "clinician_dose": Source.CLINICIAN}

REASONS = {
    "by-clinician": "user",
    "alarming": "alarm",
    "switching-source": "switching",
    "between-doses": "between_doses",
    "standby": "standby",
    "powered-off": "powered_off",
}

ALARM_WORDS = {
    "OCCL": AlarmClass.OCCLUSION,
    "OCCLUSION": AlarmClass.OCCLUSION,
    "AIR": AlarmClass.AIR,
    "EMPTY": AlarmClass.EMPTY,
    "BATT": AlarmClass.BATTERY,
    "BATTERY": AlarmClass.BATTERY,
    "MALF": AlarmClass.MALFUNCTION,
}
"""Words of the MDC name of an alarm that say its class."""
ALARM_OF_CODE = {"196940": AlarmClass.OCCLUSION}

ML_H = {"MDC_DIM_MILLI_L_PER_HR": 1.0, "265266": 1.0, "ML/H": 1.0, "ML/HR": 1.0}
ML = {"MDC_DIM_MILLI_L": 1.0, "263762": 1.0, "ML": 1.0}
SECONDS = {
    name: seconds
    for seconds, names in ((1.0, "MDC_DIM_X_SEC MDC_DIM_SEC 264320 S"), (60.0, "MDC_DIM_MIN 264352 MIN"), (3600.0, "MDC_DIM_HR H HR"))
    for name in names.split()
}
PER_HOUR = {"min": 60.0, "h": 1.0, "hr": 1.0, "d": 1 / 24}


@lru_cache(maxsize=4096)
def named(term: str, component: str) -> tuple[str, str]:
    """(name, number) of a coded term `number^name^system^…`; the name as in `_TERMS`, and of the alternate term where that is known."""
    parts = ["".join(part.split()) for part in term.split(component)]
    parts += [""] * (5 - len(parts))
    names = [_plain(parts[1]), _plain(parts[4])]
    known = [name for name in names if name in _WORD_OF_NAME or name in EVENTS_BY_NAME]
    return (known or names)[0], parts[0]


def _plain(name: str) -> str:
    return name.upper().removeprefix("MDC_").replace("DEV_PUMP_", "PUMP_")


@lru_cache(maxsize=4096)
def word_of(term: str, component: str) -> tuple[str, str]:
    """(our word for an OBX-3 or "", its name): by name first, by number second."""
    name, code = named(term, component)
    word = _WORD_OF_NAME.get(name) or _WORD_OF_CODE.get(code, "")
    if not word and "LOCKOUT" in name:
        word = "lockout"
    return word, name


@lru_cache(maxsize=4096)
def headed(word: str, name: str) -> Source | None:
    """The source whose group an OBX of this word and name is the head of, if it is the head of a group."""
    match = _SOURCE_HEAD.fullmatch(name)
    return SOURCES.get(match[1].lower()) if match else _DOSE_HEADS.get(word)
