"""What `benchmarks.derive` measures of the derivation, in a process that begins as a command does: `folder out d|n|s`."""

from __future__ import annotations

import sys
from pathlib import Path

from ingest.processes import without_pandas


def main() -> None:
    """Derives; prints memory (MB, of all processes) and lines."""
    without_pandas()
    from benchmarks.derive import derivation

    folder, out, what = sys.argv[1:]
    derivation(Path(folder), Path(out), what)


if __name__ == "__main__":
    main()
