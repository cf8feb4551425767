"""Where `pumpledger` and `python -m ingest` begin: Ctrl-C ends them without a traceback while the command line is still being read in."""

from __future__ import annotations

import io
import sys


def main() -> None:
    """Runs the command line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that is not UTF-8 shows what it can
            stream.reconfigure(errors="backslashreplace")
    try:
        from ingest.processes import without_pandas

        without_pandas()
        from ingest.cli import main as run
    except KeyboardInterrupt:
        sys.exit("Aborted!")
    run()


if __name__ == "__main__":
    main()
