"""The families there are: every module or package of this package that has a SHEET and every entry point of group `pumpledger.families`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import cast

import devices
from devices.contract import Adapter
from devices.errors import InputError


@cache
def families() -> Mapping[str, Adapter]:
    """Family name → adapter, sorted by name. A third party's adapter never takes the place of one of ours."""
    found: dict[str, Adapter] = {}
    for point in entry_points(group="pumpledger.families"):
        adapter = cast("Adapter", point.load())
        found[adapter.SHEET.family] = adapter
    for info in pkgutil.iter_modules(devices.__path__):
        module = importlib.import_module(f"devices.{info.name}")
        if hasattr(module, "SHEET"):
            found[module.SHEET.family] = cast("Adapter", module)
    return dict(sorted(found.items()))


def family(name: str) -> Adapter:
    """The adapter of a family. Raises InputError with the names there are."""
    try:
        return families()[name]
    except KeyError:
        raise InputError(f"There is no pump family {name!r}.", do=f"Use one of: {', '.join(families())}.", code="unknown_family") from None
