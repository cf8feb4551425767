"""An explanation as one HTML page that needs nothing else, with a timeline of each session drawn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from html import escape
from itertools import pairwise

from devices.contract import Kind
from ingest import telling
from ingest.telling import Row
from ingest.views import PROPOSED, printable


class _Html(str):
    """Markup, as against text, which is still to be escaped."""

    __slots__ = ()


def _tag(name: str, /, *children: object, **attributes: object) -> _Html:
    """An element: children that are no markup are text and escaped, None and "" are left out; `class_` is class, `a_b` is a-b."""
    inner = "".join(child if isinstance(child, _Html) else escape(printable(str(child))) for child in children if child is not None)
    given = (
        (key.rstrip("_").replace("_", "-"), f"{value:.6g}" if isinstance(value, float) else value)
        for key, value in attributes.items()
        if value is not None
    )
    head = "".join(f' {key}="{escape(printable(str(value)))}"' for key, value in given)
    return _Html(f"<{name}{head}/>" if name in _EMPTY and not inner else f"<{name}{head}>{inner}</{name}>")


def _all(parts: Iterable[_Html]) -> _Html:
    return _Html("".join(parts))


_EMPTY = frozenset({"rect", "line", "circle", "path", "meta"})


def as_html(explanation: Row) -> str:
    """The explanation as one page that needs nothing else: a timeline of each session, minutes, rule, events with their bytes.

    It shows in light and dark, prints, runs no script and loads nothing.
    """
    about = explanation
    line, tz = about["line"], about["tz"]
    parts = [_header(about)]
    if (item := about["item"]) is not None:
        named = ("severity", "state", "patient_id", "pump_id", "payer", "order_id", "service_date", "minutes_at_stake")
        parts.append(_facts({name.replace("_", " "): item[name] for name in named if item[name] is not None}))
        parts.append(_answers(item["answers"]))
    if about["setup"] is not None:
        parts.append(_tag("p", telling.setup_words(about["setup"], tz)))
    if line is not None:
        parts += [_line_minutes(line), *_line_facts(about)]
    if about["decisions"]:
        parts.append(_section("Decisions", _tag("ul", *(_tag("li", telling.decision_words(one)) for one in about["decisions"]))))
    parts += [_session_section(session, tz) for session in about["sessions"]]
    if about["events"]:
        parts.append(_section("Events", _events_table(about["events"], tz)))
    for title, words in telling.ends(about):
        listed = _tag("ul", *(_tag("li", text) for text in words), class_="mono")
        parts.append(_section(title[0].upper() + title[1:], listed))
    parts.append(_tag("footer", PROPOSED))
    head = _tag(
        "head",
        _tag("meta", charset="utf-8"),
        _tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        _tag("title", f"{about['kind']} {about['id']}"),
        _Html(f"<style>{_CSS}</style>"),
    )
    return "<!doctype html>\n" + _tag("html", head, _tag("body", _PATTERNS, _tag("main", *parts)), lang="en") + "\n"


def _section(title: str, *children: _Html) -> _Html:
    return _tag("section", _tag("h2", title), *children)


def _header(about: Row) -> _Html:
    line, item = about["line"], about["item"]
    if item is not None:
        title, state = item["code"], item["severity"]
    elif line is not None:
        title, state = f"{line['code'] or 'No code'} × {line['units']}", line["state"]
    elif about["kind"] == "event":
        title, state = telling.event_words(about["events"][0]), ""
    elif about["kind"] == "set-up":
        title, state = "Set-up", ""
    else:
        title, state = f"Session on {about['sessions'][0]['pump_id']}", about["sessions"][0]["state"]
    return _tag(
        "header",
        _tag("p", f"{about['kind']} ", _tag("code", about["id"]), class_="kind"),
        _tag("h1", title, _tag("span", state, class_=f"badge {state}") if state else None),
        _tag("p", about["summary"], class_="lead"),
        _tag("p", f"{said[0].upper()}{said[1:]}.", class_="soft") if (said := telling.zone_words(about)) else None,
    )


def _line_minutes(line: Row) -> _Html:
    seconds = {"infusing": line["counted_s"], **line["excluded_s"]}
    stats = [_stat(f"{line['minutes']} min", "counted", "infusing")]
    stats += [_stat(telling.span(value), f"not counted: {telling.CLASSES.get(why, why)}", why) for why, value in line["excluded_s"].items()]
    reasons = [
        _tag("li", _tag("b", said["code"]), f" {said['found']} {said['do']}", _answers(said["answers"])) for said in line["reasons_say"]
    ]
    note = _tag("p", telling.TWICE) if line["counted_s"] // 60 > line["minutes"] else _Html()
    return _section("Minutes", _stats(stats), _bar(seconds), note, _tag("ul", *reasons, class_="reasons") if reasons else _Html())


def _answers(commands: Iterable[str]) -> _Html:
    return _all(_tag("p", "Answer with: ", _tag("code", command)) for command in commands)


def _stats(stats: Iterable[_Html]) -> _Html:
    return _tag("div", *stats, class_="stats")


def _stat(value: str, label: str, what: str) -> _Html:
    return _tag("div", _tag("b", value), _tag("span", _tag("i", class_=f"swatch {what}"), label), class_="stat")


def _bar(seconds: Mapping[str, float]) -> _Html:
    whole = sum(seconds.values()) or 1
    parts = [
        _tag("i", class_=what, style=f"width:{100 * value / whole:.3f}%", title=f"{what}: {telling.span(value)}")
        for what, value in seconds.items()
    ]
    return _tag("div", *parts, class_="bar")


def _line_facts(about: Row) -> list[_Html]:
    line = about["line"]
    facts = {
        "Patient": line["patient_id"], "Order": line["order_id"], "Drug": line["drug"], "Route": line["route"], "Payer": line["payer"],
        "Place of service": line["place_of_service"] or "not given", "Service date": line["service_date"],
        "Start": telling.stamp(line["start"], about["tz"]), "Stop": telling.stamp(line["stop"], about["tz"]),
        "Pumps": ", ".join(line["pump_ids"]),
        "Revision": line["revision"], "Revenue codes": ", ".join(line["revenue_codes"]) or "none",
    }  # fmt: skip
    rule = [_tag("li", text) for text in telling.rule_words(about["rule"])]
    policies = line["policies"].items() if isinstance(line["policies"], dict) else ()
    listed = _tag("dl", *(_all((_tag("dt", name), _tag("dd", value))) for name, value in policies), class_="facts")
    others = [
        _tag("li", _tag("b", f"{row['code']} × {row['units']}"), f" {row['state']} ", _tag("code", row["line_id"]))
        for row in about["others"]
    ]
    return [
        _section("The line", _facts(facts)),
        *([_section("With it, of the same encounter", _tag("ul", *others))] if others else []),
        _section(
            "The rule", _tag("ul", *rule), _tag("details", _tag("summary", "Policies in force"), listed), _hash(line["evidence_hash"])
        ),
    ]


def _facts(facts: Mapping[str, object]) -> _Html:
    return _tag("dl", *(_tag("div", _tag("dt", name), _tag("dd", value)) for name, value in facts.items()), class_="facts")


def _hash(sha: str) -> _Html:
    return _tag("p", "Hash of the evidence ", _tag("code", sha), class_="mono small")


def _session_section(session: Row, tz: str | None) -> _Html:
    facts = {
        "Pump": session["pump_id"],
        "Start": telling.stamp(session["start"], tz),
        "Stop": "still open" if session["state"] == "open" else telling.stamp(session["stop"], tz),
        "Pump clock at start": telling.stamp(session["printed_start"]),
        "Time": session["time_quality"],
        "Boluses": session["bolus_count"],
        "Demands granted, denied": f"{session['granted']}, {session['denied']}",
        "Volume": "unknown" if session["volume_ml"] is None else f"{session['volume_ml']:g} mL",
    }
    seconds = {name: session[f"{name}_s"] for name in telling.CLASSES if session[f"{name}_s"] or name == "infusing"}
    flags = [_tag("li", _tag("b", said["code"]), f" {said['found']} {said['do']}") for said in session["flags_say"]]
    setups = [_tag("li", telling.setup_words(setup, tz)) for setup in session["setups"]]
    rows = [
        _tag(
            "tr",
            _tag("td", _tag("i", class_=f"swatch {i['class']}"), i["class"], telling.source_words(i)),
            _tag("td", telling.span(i["seconds"])),
            _tag("td", "counted" if i["counted"] else "not counted"),
            _tag("td", f"{telling.stamp(i['from'], tz)} – {telling.stamp(i['to'], tz)}", class_="mono"),
            _tag("td", i["why"]),
        )
        for i in session["intervals"]
    ]
    return _tag(
        "section",
        _tag("h2", "Session ", _tag("code", session["session_id"]), _tag("span", session["state"], class_=f"badge {session['state']}")),
        _timeline(session),
        _stats(_stat(telling.span(value), name, name) for name, value in seconds.items()),
        _facts(facts),
        _tag("ul", *flags, class_="reasons") if flags else None,
        _tag("h3", "Minutes, and why"),
        _tag("table", _head("what", "how long", "", "from – to", "why"), _tag("tbody", *rows)),
        _all((_tag("h3", "Set-ups"), _tag("ul", *setups))) if setups else None,
        _tag("h3", "Events"),
        _events_table(session["events"], tz),
        _hash(session["evidence_hash"]),
    )


def _head(*titles: str) -> _Html:
    return _tag("thead", _tag("tr", *(_tag("th", title) for title in titles)))


def _events_table(events: Sequence[Row], tz: str | None) -> _Html:
    bodies = []
    for event in events:
        row = _tag(
            "tr",
            _tag("td", telling.stamp(event["time"], tz), class_="mono"),
            _tag("td", _tag("i", class_=f"swatch {event['time_quality']}"), event["time_quality"], title=event["time_method"]),
            _tag("td", telling.stamp(event["pump_time"]) if event["pump_time"] is not None else "", class_="mono"),
            _tag("td", telling.event_words(event)),
            _tag("td", _tag("code", event["event_id"][:10])),
        )
        records = [_record(record) for record in event["records"]]
        below = _tag(
            "tr", _tag("td", *(records or [_tag("p", "No record: this is a place where the log has none.")]), colspan=5), class_="bytes"
        )
        bodies.append(_tag("tbody", row, below, class_="event"))
    return _tag("table", _head("time", "quality", "pump clock", "what it says", "event"), *bodies)


def _record(record: Row) -> _Html:
    text = telling.readable(record["raw"])
    return _tag(
        "details",
        _tag("summary", _tag("code", telling.spaced(record["raw"])), _tag("span", telling.place_words(record), class_="soft")),
        _tag("p", _tag("code", text)) if text else None,
        _tag("p", "Capture ", _tag("code", record["capture"]), class_="soft"),
        _facts({name: telling.short(value) for name, value in record["decoded"].items()}),
    )


# --- the timeline -----------------------------------------------------------------------------------------------------------

_WIDTH, _LEFT, _RIGHT = 960.0, 92.0, 16.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_STEPS_MS = tuple(60_000 * minutes for minutes in (1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720, 1440, 2880, 10080, 43200))
_TICKS = 9
_QUALITIES = ("exact", "corrected", "unknown")


@dataclass(frozen=True, slots=True)
class _Axis:
    """Elapsed time across a figure, with UTC where it is known."""

    low: int
    high: int
    known: tuple[int, datetime] | None

    def x(self, ms: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (ms - self.low) / (self.high - self.low)

    def ticks(self) -> Iterator[tuple[float, str]]:
        """(place, label): round UTC times, else round elapsed ones."""
        step = next((s for s in _STEPS_MS if (self.high - self.low) / s <= _TICKS), _STEPS_MS[-1])
        shift = 0
        if self.known is not None:
            at, utc = self.known
            shift = (utc - _EPOCH) // timedelta(milliseconds=1) - at
        day = None
        for moment in range(-(-(self.low + shift) // step) * step, self.high + shift + 1, step):
            if self.known is None:
                hours, minutes = divmod(moment // 60_000, 60)
                yield self.x(moment), f"+{hours}:{minutes:02d}"
            else:
                utc = self.known[1] + timedelta(milliseconds=moment - shift - self.known[0])
                yield self.x(moment - shift), f"{utc:%H:%M}" if day == utc.date() else f"{utc:%m-%d %H:%M}"
                day = utc.date()


def _timeline(session: Row) -> _Html:
    """Bands of what each second is; boluses, alarms, set-ups and sites as marks; how the clock is known."""
    intervals, events = session["intervals"], [event for event in session["events"] if event["elapsed_ms"] is not None]
    first = min((i["from_ms"] for i in intervals), default=0)
    last = max((i["to_ms"] for i in intervals), default=0)
    lead = max(1_800_000, (last - first) // 4)
    early = [s["elapsed_ms"] for s in session["setups"] if first - lead <= s["elapsed_ms"] < first]
    low, high = min([first, *early]), max(last, first + 60_000)
    pad = max(1, (high - low) // 60)
    known = next(((event["elapsed_ms"], event["time"]) for event in events if event["time"] is not None), None)
    axis = _Axis(low - pad, high + pad, known)
    shown = [event for event in events if axis.low <= event["elapsed_ms"] <= axis.high]
    rows: list[tuple[str, list[_Html], float]] = [("delivery", [_band(axis, i) for i in intervals], 38.0)]
    for title, marks in (
        ("boluses", [_bolus(axis, event) for event in shown if event["kind"] == Kind.BOLUS_DELIVERED]),
        ("alarms", [_alarm(axis, event) for event in shown if event["kind"] in (Kind.ALARM_RAISED, Kind.ALARM_CLEARED)]),
        ("set-ups", [_setup_mark(axis, setup) for setup in session["setups"] if axis.low <= setup["elapsed_ms"] <= axis.high]),
    ):
        if marks:
            rows.append((title, marks, 20.0))
    rows.append(("pump clock", _clock(axis, shown), 10.0))
    drawn, y = [], 6.0
    for title, marks, height in rows:
        label = _tag("text", title, x=_LEFT - 10, y=height / 2 + 4, text_anchor="end", class_="label")
        drawn.append(_tag("g", label, *marks, transform=f"translate(0 {y:g})"))
        y += height + 8
    grid = [_tag("line", x1=x, x2=x, y1=2, y2=y, class_="grid") for x, _ in axis.ticks()]
    labels = [_tag("text", label, x=x, y=y + 14, text_anchor="middle", class_="label") for x, label in axis.ticks()]
    labels.append(_tag("text", "elapsed" if known is None else "UTC", x=0, y=y + 14, class_="label"))
    title = f"Timeline of session {session['session_id']}: {telling.session_words(session)}"
    svg = _tag("svg", _tag("title", title), *grid, *drawn, *labels, viewBox=f"0 0 {_WIDTH:g} {y + 22:g}", role="img")
    return _tag("figure", _tag("div", svg, class_="scroll"), _legend(session, shown, axis))


def _legend(session: Row, shown: Sequence[Row], axis: _Axis) -> _Html:
    there = {i["class"] for i in session["intervals"]}
    keys = [_tag("span", _tag("i", class_=f"swatch {name}"), name) for name in telling.CLASSES if name in there]
    quality = {event["time_quality"] for event in shown}
    keys += [_tag("span", _tag("i", class_=f"swatch thin {name}"), f"clock {name}") for name in _QUALITIES if name in quality]
    outside = sum(setup["elapsed_ms"] < axis.low for setup in session["setups"])
    if outside:
        keys.append(_tag("span", f"{outside} set-up{'s' if outside > 1 else ''} before this figure: see Set-ups"))
    return _tag("figcaption", *keys)


def _span_of(axis: _Axis, low: int, high: int, height: int, what: str, title: str) -> _Html:
    width = max(1.5, axis.x(high) - axis.x(low))
    return _tag("rect", _tag("title", title), x=axis.x(low), y=0, width=width, height=height, class_=what)


def _band(axis: _Axis, interval: Row) -> _Html:
    low, high, what = interval["from_ms"], interval["to_ms"], interval["class"]
    label = f"{what} {telling.span(interval['seconds'])}"
    counted = "counted" if interval["counted"] else "not counted"
    bar = _span_of(axis, low, high, 38, what, f"{label}, {counted}: {telling.stamp(interval['from'])} to {telling.stamp(interval['to'])}")
    if axis.x(high) - axis.x(low) < 7 * len(label):
        return bar
    return _all((bar, _tag("text", label, x=(axis.x(low) + axis.x(high)) / 2, y=23, text_anchor="middle", class_=f"on {what}")))


def _mark(path: str, x: float, title: str, what: str) -> _Html:
    return _tag("path", _tag("title", title), d=path, transform=f"translate({x:g} 10)", class_=f"mark {what}")


def _title(event: Row) -> str:
    return f"{telling.event_words(event)}: {telling.time_words(event)}"


def _bolus(axis: _Axis, event: Row) -> _Html:
    return _mark("M0 9V-3M-3.5-3a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0", axis.x(event["elapsed_ms"]), _title(event), "bolus")


def _alarm(axis: _Axis, event: Row) -> _Html:
    raised = event["kind"] == Kind.ALARM_RAISED
    return _mark("M0-8L8 7H-8Z", axis.x(event["elapsed_ms"]), _title(event), "raised" if raised else "cleared")


def _setup_mark(axis: _Axis, setup: Row) -> _Html:
    """A square is a pump set-up, a diamond one with a new site, filled where it is sure."""
    site = setup["new_site"]
    path = "M-6-6H6V6H-6Z" if site == "no" else "M0-9L9 0L0 9L-9 0Z"
    return _mark(path, axis.x(setup["elapsed_ms"]), telling.setup_words(setup), "setup" if site == "no" else f"site {site}")


def _clock(axis: _Axis, events: Sequence[Row]) -> list[_Html]:
    """Segments between events by the worse quality of both ends, and the places where the clock was set."""
    runs: list[tuple[int, int, str]] = []
    for one, other in pairwise(events):
        worse = max(one["time_quality"], other["time_quality"], key=_QUALITIES.index)
        if runs and runs[-1][2] == worse:
            runs[-1] = (runs[-1][0], other["elapsed_ms"], worse)
        else:
            runs.append((one["elapsed_ms"], other["elapsed_ms"], worse))
    drawn = [_span_of(axis, low, high, 8, quality, f"UTC {quality}") for low, high, quality in runs]
    changes = [event for event in events if event["kind"] == Kind.CLOCK_CHANGE]
    return [*drawn, *(_tag("path", _tag("title", _title(e)), d=f"M{axis.x(e['elapsed_ms']):g}-4v16", class_="set") for e in changes)]


_PATTERNS = _Html(
    '<svg width="0" height="0" style="position:absolute" aria-hidden="true"><defs>'
    '<pattern id="unknown" width="8" height="8" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="8" height="8" class="pattern-back"/><rect width="3" height="8" class="pattern-unknown"/></pattern>'
    '<pattern id="alarm" width="6" height="6" patternUnits="userSpaceOnUse">'
    '<rect width="6" height="6" class="pattern-alarm"/><circle cx="2" cy="2" r="1.1" class="pattern-back"/></pattern>'
    "</defs></svg>"
)

_CSS = """
:root{color-scheme:light dark;--bg:#fff;--ink:#17212b;--soft:#5b6875;--rule:#dbe1e8;--card:#f5f7f9;--infusing:#0f766e;--unknown:#b45309;
--kvo:#38a3d1;--alarm:#b3224f;--paused:#c3ccd6;--exact:#0f766e;--corrected:#7a8fd8;--on:#fff;--onpaused:#17212b;--ready:#15803d;
--hold:#a34a04}
@media (prefers-color-scheme:dark){:root{--bg:#12171d;--ink:#e6ebf0;--soft:#9aa7b4;--rule:#2c3640;--card:#1a2129;--infusing:#2fa89c;
--unknown:#e19a3c;--kvo:#4fb4e0;--alarm:#e0557f;--paused:#4a5763;--exact:#2fa89c;--corrected:#8ea2ea;--on:#0b1014;--onpaused:#e6ebf0;
--ready:#4fbf73;--hold:#eaa24a}}
@media print{:root{color-scheme:light;--bg:#fff;--ink:#000;--soft:#444;--rule:#bbb;--card:#fff;--infusing:#0f766e;--unknown:#b45309;
--kvo:#38a3d1;--alarm:#b3224f;--paused:#c3ccd6;--exact:#0f766e;--corrected:#7a8fd8;--on:#fff;--onpaused:#000;--ready:#15803d;
--hold:#a34a04}*{print-color-adjust:exact;-webkit-print-color-adjust:exact}main{padding:0;max-width:none}details::details-content{
content-visibility:visible;display:block}.event,figure,.stats,.facts{break-inside:avoid}h2,h3{break-after:avoid}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1060px;margin:0 auto;padding:28px 24px 48px}h1{font-size:30px;line-height:1.2;margin:2px 0 6px}
h2{font-size:18px;margin:34px 0 12px;padding-top:18px;border-top:1px solid var(--rule)}h3{font-size:15px;margin:22px 0 6px}
code,.mono{font-family:ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,monospace;font-size:12.5px;font-weight:400}
code{overflow-wrap:anywhere}.kind,.soft,.small,.label,dt,th,figcaption,footer{color:var(--soft)}.kind{margin:0}
.lead{font-size:17px;margin:0;max-width:75ch}.small{font-size:12.5px}
.badge{display:inline-block;margin-left:12px;padding:2px 10px;border-radius:12px;border:1px solid currentColor;font-size:13px;
font-weight:600;vertical-align:middle;color:var(--soft)}
.badge.ready,.badge.closed{color:var(--ready)}.badge.hold,.badge.uncertain,.badge.open{color:var(--hold)}
.stats{display:flex;flex-wrap:wrap;gap:10px;margin:12px 0}
.stat{background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:8px 14px}.stat b{display:block;font-size:20px}
.stat span{font-size:13px;color:var(--soft)}
.swatch{display:inline-block;width:11px;height:11px;border-radius:2px;margin-right:6px;background:var(--paused)}
.swatch.thin{height:5px;vertical-align:middle}.bar{display:flex;height:14px;border-radius:4px;overflow:hidden;background:var(--card)}
.bar i{display:block;height:100%}.infusing{fill:var(--infusing)}i.infusing{background:var(--infusing)}.kvo{fill:var(--kvo)}
i.kvo{background:var(--kvo)}.paused{fill:var(--paused)}i.paused{background:var(--paused)}.exact{fill:var(--exact)}
i.exact{background:var(--exact)}.corrected{fill:var(--corrected)}i.corrected{background:var(--corrected)}.unknown{fill:url(#unknown)}
i.unknown{background:repeating-linear-gradient(135deg,var(--unknown) 0 3px,var(--bg) 3px 6px)}.alarm{fill:url(#alarm)}
i.alarm{background:var(--alarm)}.pattern-back{fill:var(--bg)}.pattern-unknown{fill:var(--unknown)}.pattern-alarm{fill:var(--alarm)}
figure{margin:0}.scroll{overflow-x:auto}svg{display:block;width:100%;min-width:640px;height:auto}.label{font-size:12px;fill:var(--soft)}
.grid{stroke:var(--rule);stroke-width:1}.on{font-size:12px;font-weight:600;fill:var(--on)}.on.paused{fill:var(--onpaused)}
.on.unknown,.on.alarm{fill:var(--ink);stroke:var(--bg);stroke-width:4px;paint-order:stroke}.mark{stroke:var(--bg);stroke-width:.5}
.bolus{fill:var(--infusing);stroke:var(--infusing);stroke-width:1.5}.raised{fill:var(--alarm)}
.cleared{fill:var(--bg);stroke:var(--alarm);stroke-width:1.5}.setup{fill:var(--bg);stroke:var(--ink);stroke-width:1.5}
.site.yes{fill:var(--ink)}.site.possible{fill:var(--bg);stroke:var(--ink);stroke-width:1.5;stroke-dasharray:3 2}
.set{stroke:var(--ink);stroke-width:2}figcaption{display:flex;flex-wrap:wrap;gap:4px 18px;font-size:13px;margin:4px 0 10px}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(210px,1fr));gap:8px 20px;margin:12px 0}
.facts dd{margin:0;overflow-wrap:anywhere}dt{font-size:12.5px}
.reasons{padding:10px 14px 10px 30px;border-left:3px solid var(--hold);background:var(--card);margin:12px 0}ul{padding-left:20px}
li{margin:2px 0;overflow-wrap:anywhere}table{border-collapse:collapse;width:100%;font-size:13.5px}
th{text-align:left;font-weight:500;border-bottom:1px solid var(--rule);padding:4px 12px 4px 0}
td{padding:4px 12px 4px 0;vertical-align:top}tbody.event,table>tbody:not(.event) tr{border-bottom:1px solid var(--rule)}
.bytes td{padding:0 0 6px}.bytes code{font-size:11.5px;color:var(--soft)}
.bytes .soft{font-size:11.5px;margin-left:10px}.bytes p{margin:4px 0}summary{cursor:pointer}
footer{margin-top:36px;padding-top:14px;border-top:1px solid var(--rule);font-size:13px}
"""
