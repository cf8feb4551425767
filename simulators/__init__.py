"""Pumps that speak the same bytes as real ones, from a seeded therapy script with scripted faults.

A family is one module here that has `simulate` (simulators.link.Simulator); it is found by its name, and none is listed anywhere.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from devices.errors import InputError

if TYPE_CHECKING:
    from simulators.link import Simulator


def families() -> Mapping[str, Simulator]:
    """Family name → simulator, sorted by name."""
    found = {info.name: importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)}
    return {name: cast("Simulator", module) for name, module in sorted(found.items()) if hasattr(module, "simulate")}


def family(name: str) -> Simulator:
    """The simulator of a family. Raises InputError with the names there are."""
    there = families()
    if name not in there:
        raise InputError(f"There is no simulated pump of family {name!r}.", do=f"Use one of: {', '.join(there)}.", code="unknown_family")
    return there[name]
