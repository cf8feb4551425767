"""The command line (docs/design.md §4): the group of all commands. What a command needs is imported when it is asked for.

Exit codes: 0 done, 1 failed, 2 usage; with `--strict` 3 for "done, with items that need a person".
"""

from __future__ import annotations

import errno
import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from devices.errors import PumpledgerError
from ingest.commands.options import console

_WHERE = {
    name: module
    for module, names in (
        ("edge", "sync listen ask gateway load enroll"),
        ("night", "demo nightly verify quarantine"),
        ("billing", "sessions setups days lines worklist export explain decide release amendments"),
        ("bench", "decode simulate replay doctor"),
    )
    for name in names.split()
}
"""The module of ingest.commands that has a command."""


class _Commands(click.Group):
    """Finds commands where they are, and turns our errors into *what, why, what to do next* and exit code 1."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_WHERE)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _WHERE:
            return None
        commands: click.Group = import_module(f"ingest.commands.{_WHERE[cmd_name]}").commands
        return commands.get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PumpledgerError as error:
            _tell(error)
            ctx.exit(1)
        except OSError as error:
            if error.errno == errno.EPIPE:  # who read it has had enough
                raise
            from ingest.files import storage_error

            if error.filename is None:  # what is left for an output that cannot be written cannot be written either
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            _tell(storage_error(Path(error.filename or "the output"), error))
            ctx.exit(1)


def _tell(error: PumpledgerError) -> None:
    """An error, in lines that are not broken: a path can be copied and searched for."""
    if "--json" in sys.argv:
        click.echo(json.dumps({"error": error.code, "what": error.what, "why": error.why, "do": error.do}))
    for style, text in (("bold red", error.what), ("", error.why), ("bold", error.do)):
        if text:
            console.print(f"[{style}]{escape(text)}[/]" if style else escape(text), soft_wrap=True)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="pumpledger")
def main() -> None:
    """Turns what an infusion pump recorded into what may honestly be billed.

    Read-only to a pump. It proposes; a biller decides.

    \b
    A first look, with simulated pumps:
      pumpledger demo --out demo-out
    A night:
      pumpledger sync /dev/ttyUSB0=paradigm:123456
      pumpledger nightly --orders orders.csv
      pumpledger lines --month 2026-03
    """


if __name__ == "__main__":
    main()
