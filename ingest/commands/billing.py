"""What billing pulls, asks and decides: sessions, setups, days, lines, worklist, export, explain, decide, release, amendments."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import click
from rich.markup import escape
from rich.progress import TaskID

from ingest import explain, files, listing, people, review, telling, views
from ingest.commands.options import FORMATS, TEXT, console, form_of, json_option, lake_option, progress_bars
from ingest.lake import Lake
from ingest.page import as_html

commands = click.Group()

_TABLES = ("sessions", "setups", "days", "lines", "worklist")


def _pulls(name: str, what: str) -> None:
    @commands.command(
        name=name, help=f"{what}\n\n\b\nExamples:\n  pumpledger {name} --month 2026-03\n  pumpledger {name} --format xlsx -o {name}.xlsx"
    )
    @click.option("--month", metavar="YYYY-MM", help="Only this month.")
    @click.option("--patient", type=TEXT, help="Only this patient.")
    @click.option("--payer", type=TEXT, help="Only this payer.")
    @click.option("--state", help="Only this state.")
    @click.option("--format", "style", type=click.Choice(FORMATS), help="By default what the file's ending says, else table.")
    @click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="The file to write; by default standard output.")
    @lake_option
    @json_option
    def pull(
        month: str | None,
        patient: str | None,
        payer: str | None,
        state: str | None,
        style: str | None,
        output: Path | None,
        lake: Path,
        as_json: bool,
    ) -> None:
        form = form_of("json" if as_json else style, output)
        opened = Lake.open(lake)
        rows = views.select(opened, name, month=month, patient=patient, payer=payer, state=state)
        stream: IO[Any] = sys.stdout if form == "table" else sys.stdout.buffer
        views.write(rows, name, form, output or stream)
        if not rows.num_rows and form != "json":
            asked = {"month": month, "patient": patient, "payer": payer, "state": state}
            console.print(escape(views.nothing(opened, name, asked)))


for _name, _what in (
    ("sessions", "Infusion sessions, with their seconds by kind."),
    ("setups", "Set-ups of pump and site."),
    ("days", "Therapy days."),
    ("lines", "Candidate service lines. A biller decides."),
    ("worklist", "What needs a look, and what holds lines."),
):
    _pulls(_name, _what)


@commands.command(name="export")
@click.option(
    "--to",
    required=True,
    metavar="URL",
    envvar="PUMPLEDGER_DATABASE",
    show_envvar=True,
    help="postgresql://[user[:password]@]host[:port]/database",
)
@click.option("--schema", default="pumpledger", show_default=True, help="The schema of its tables; made where it is not there.")
@click.option("--month", metavar="YYYY-MM", help="Only this month.")
@click.option("--patient", type=TEXT, help="Only this patient.")
@click.option("--payer", type=TEXT, help="Only this payer: of the tables that name one.")
@click.option("--state", help="Only this state: of the tables that have it.")
@lake_option
@json_option
def export_(
    to: str, schema: str, month: str | None, patient: str | None, payer: str | None, state: str | None, lake: Path, as_json: bool
) -> None:
    """What billing pulls, into a PostgreSQL database: sessions, setups, days, lines and worklist, whole or not at all.

    The first export makes the tables; each later one changes the rows that differ and no others. A row that the lake has no more
    stays, with withdrawn_at; a filtered export looks at no row outside its filter. A password may be left to ~/.pgpass.

    \b
    Examples:
      pumpledger export --to postgresql://billing@db.example/agency
      pumpledger export --to "postgresql:///agency?host=/run/postgresql" --month 2026-03
      pumpledger export --to postgresql://billing@db.example/agency --state ready --json
    """
    with progress_bars() as shown:
        bars: dict[str, TaskID] = {}

        def progress(table: str, done: int, total: int) -> None:
            if table not in bars:
                bars[table] = shown.add_task(table, total=total, note="")
            shown.update(bars[table], completed=done, total=total)

        from ingest import postgres  # its driver takes longer to load than most commands

        told = postgres.export(
            Lake.open(lake), to, schema=schema, month=month, patient=patient, payer=payer, state=state, progress=progress
        )
    left_out = [name for name in _TABLES if name not in told]
    if as_json:
        counts = {name: asdict(one) for name, one in told.items()}
        click.echo(json.dumps({"schema": schema, "tables": counts, "left_out": left_out}))
        return
    for name, one in told.items():
        click.echo(f"{name}: " + ", ".join(f"{count} {what}" for what, count in asdict(one).items()))
    if left_out:
        click.echo(f"As they were, for they lack what is filtered by: {', '.join(left_out)}.")


@commands.command(name="explain")
@click.argument("ident", metavar="ID")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write a page with the timeline drawn.")
@lake_option
@json_option
def explain_(ident: str, html: Path | None, lake: Path, as_json: bool) -> None:
    """From any line, session, set-up, event or worklist item back to the raw bytes.

    \b
    Examples:
      pumpledger explain 3fa2c41be07d55aa9c10
      pumpledger explain 3fa2c4 --html line.html
    """
    found = explain.explain(Lake.open(lake), ident)
    if html is not None:
        files.replace_text(html, as_html(found))
        console.print(f"Written: {html}")
    else:
        click.echo(telling.as_json(found) if as_json else telling.as_text(found))


_ACTIONS = ("confirm_site", "stop", "confirm_clock", "clear", "hold", "void")


@commands.command()
@click.argument("words", nargs=-1, required=True, metavar="ID | undo DECISION_ID | list")
@click.option("--confirm-site", is_flag=True, help="The set-up had a new site.")
@click.option(
    "--stop", metavar="T", help="The delivery ended then: UTC with Z, the order's local time without, the pump's where UTC is unknown."
)
@click.option("--confirm-clock", is_flag=True, help="The pump's clock ran on as it did in the next part of its log that has an anchor.")
@click.option("--clear", metavar="CODE", help="This code no longer holds this encounter.")
@click.option("--hold", is_flag=True, help="Hold it until this is taken back.")
@click.option("--void", is_flag=True, help="Never bill it.")
@click.option(
    "--note", type=TEXT, metavar="TEXT", default="", help="Why, or alone: what is to be known. Write no names: it is kept for ever."
)
@click.option("--by", type=TEXT, metavar="WHO", help="Who decides.")
@lake_option
@json_option
def decide(words: tuple[str, ...], note: str, by: str | None, lake: Path, as_json: bool, **asked: Any) -> None:
    """A reviewer's decision on a line, worklist item, session, set-up or event; it is kept, and what it touches is derived at once.

    `worklist` and `explain` show the commands that fit an item, ready but for your name; more may be decided than they show.

    A decision holds as long as what it was taken on is as it was; then the item is open again. `undo` takes one back, whoever took it;
    so may an undo be. `list` shows all of them. Notes are kept for ever and shown: never write a patient's name or what names one.

    \b
    Examples:
      pumpledger decide 3fa2c41be0 --clear OVER_8H --note "duration confirmed with the visit record" --by ana
      pumpledger decide 3fa2c41be0 --stop 2026-03-08T14:30:00Z --by ana
      pumpledger decide 77b0e1c2d4 --confirm-site --by ana
      pumpledger decide undo 9c01aa52ef --by ana
    """
    if words == ("list",):
        _show_decisions(lake, as_json)
        return
    if by is None:
        raise click.UsageError("Say who decides with --by.")
    given = [name for name in _ACTIONS if asked[name]] or (["note"] if note else [])
    if words[0] == "undo":
        if len(words) != 2 or (given and given != ["note"]):
            raise click.UsageError("It is: decide undo DECISION_ID --by WHO")
        outcome = review.undo(lake, words[1], by=by, note=note)
    else:
        if len(words) != 1 or len(given) != 1:
            raise click.UsageError("Name one ID and one decision: --" + ", --".join(name.replace("_", "-") for name in (*_ACTIONS, "note")))
        argument = asked[given[0]] if given[0] in ("stop", "clear") else ""
        outcome = review.decide(lake, words[0], given[0].replace("_", "-"), by=by, argument=argument, note=note)
    told, names = outcome.decision, ("line_id", "revision", "service_date", "code", "units", "minutes", "state", "reasons")
    lines = [{name: views.plain(line[name]) for name in names} for line in outcome.lines]
    if as_json:
        click.echo(json.dumps({"decision": views.plain(told.row()), "shown": outcome.shown, "lines": lines}, ensure_ascii=False))
        return
    click.echo(
        f"Kept: {told.action} {told.argument}".rstrip()
        + f" by {told.by}; take it back with: pumpledger decide undo {told.decision_id[:10]}"
    )
    if not outcome.shown:
        click.echo("Another run is deriving right now: the next night shows it.")
    for line in lines:
        held = f", held by {', '.join(line['reasons'])}" if line["reasons"] else ""
        shown = f"{line['service_date']} {line['code'] or 'no code'} x{line['units']}, {line['minutes']} min: {line['state']}{held}"
        click.echo(f"  {line['line_id'][:10]} {shown}")


def _show_decisions(lake: Path, as_json: bool) -> None:
    every = people.decisions(Lake.open(lake))
    if as_json:
        click.echo(json.dumps([{**views.plain(one.row()), "stands": review.stands(one, every)} for one in every], ensure_ascii=False))
        return
    rows = []
    for one in every:
        what, stands = f"{one.action} {one.argument}".rstrip(), "yes" if review.stands(one, every) else "taken back"
        when = f"{one.decided_at:%Y-%m-%d %H:%M}"
        rows.append([one.decision_id[:10], when, *map(views.printable, (one.by, what, one.named, one.note)), stands])
    listing.show(sys.stdout, ("id", "when (UTC)", "who", "decision", "on", "note", "stands"), rows)


@commands.command(name="release")
@click.option("--payer", type=TEXT, help="Only this payer.")
@click.option("--month", metavar="YYYY-MM", help="Only encounters that began in this month.")
@click.option("--dry-run", is_flag=True, help="Show what it would take, and take nothing.")
@click.option("--by", type=TEXT, required=True, metavar="WHO", help="Who takes them.")
@lake_option
@json_option
def release_(payer: str | None, month: str | None, dry_run: bool, by: str, lake: Path, as_json: bool) -> None:
    """Take the lines that are ready, once: their rows are frozen under LAKE/releases, and shown as released from then on.

    A second release takes only what is new; nothing new is a success. What changes later is an amendment, never an edit. What changed
    in released lines and was cleared goes with it, as void and replacement.

    \b
    Examples:
      pumpledger release --payer payer-a --month 2026-03 --dry-run --by ana
      pumpledger release --payer payer-a --month 2026-03 --by ana
    """
    taken = review.release(lake, by=by, payer=payer, month=month, dry_run=dry_run)
    waiting = review.waiting(Lake.open(lake), payer=payer, month=month)
    if as_json:
        told = {**taken.plain(), "file": None if dry_run else str(people.rows_file(Lake.open(lake), taken))} if taken else None
        click.echo(json.dumps({"dry_run": dry_run, "release": told, "waiting": waiting}, ensure_ascii=False))
        return
    if taken is None:
        wider = review.release(lake, by=by, dry_run=True) if payer or month else None
        click.echo(f"Nothing new is ready{f' of these; without --payer and --month {wider.lines} lines are' if wider else ''}.")
    else:
        rows = [[views.printable(one.payer), one.code, str(one.lines), str(one.units), str(one.minutes)] for one in taken.totals]
        listing.show(sys.stdout, ("payer", "code", "lines ", "units ", "minutes "), rows)
        voids = f", and {taken.voids} voids of what was released before" if taken.voids else ""
        click.echo(f"{'Would take' if dry_run else 'Taken'}: {taken.lines} lines, {taken.units} units{voids}.")
        if not dry_run:
            click.echo(f"Release {taken.release_id}: {people.rows_file(Lake.open(lake), taken)}")
    if waiting:
        click.echo(f"Ready, but not taken: {waiting} lines that would claim again what is released and not void yet.")
        click.echo("Clear AMENDED_AFTER_RELEASE of what they replace first: pumpledger amendments, pumpledger worklist --state open")


@commands.command()
@click.option("--month", metavar="YYYY-MM", help="Only this month of service, as released or as it is now.")
@click.option("--payer", type=TEXT, help="Only this payer.")
@click.option("--format", "style", type=click.Choice(FORMATS), help="By default what the file's ending says, else table.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="The file to write; by default standard output.")
@lake_option
@json_option
def amendments(month: str | None, payer: str | None, style: str | None, output: Path | None, lake: Path, as_json: bool) -> None:
    """What late data, a decision or an order changed in lines after they were released: what is void, and what replaces it.

    A replacement is held until somebody clears it: pumpledger decide LINE --clear AMENDED_AFTER_RELEASE --by WHO

    \b
    Examples:
      pumpledger amendments --month 2026-03
      pumpledger amendments --payer payer-a --format csv -o amendments.csv
    """
    form = form_of("json" if as_json else style, output)
    opened = Lake.open(lake)
    rows = review.amendments(opened, payer=payer, month=month)
    stream: IO[Any] = sys.stdout if form == "table" else sys.stdout.buffer
    views.write(rows, "amendments", form, output or stream)
    if not rows.num_rows and form != "json":
        console.print(escape(review.no_amendments(opened, payer=payer, month=month)))
