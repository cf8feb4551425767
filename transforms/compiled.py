"""The kernels of this room, compiled where it pays.

A kernel is a plain function of arrays. Compiling costs seconds and pays on large logs alone; a night of a few pumps runs the very
same functions as they are written. Both give the same (tests/transforms/test_compiled.py).
"""

from __future__ import annotations

import hashlib
import types
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

ROWS = 10_000
"""From so many events on, kernels are compiled: as written they take some 17 µs an event, and loading them compiled 0.3 s."""


class Kernels:
    """The kernels of a module (it names them, callees first, in `KERNELS`) for an input of so many rows.

    `LEAN` names those that make no array: numba spares them the counting of references to the arrays they are given, which would be
    most of their time.
    """

    def __init__(self, module: types.ModuleType, rows: int) -> None:
        self._compiled = rows >= ROWS
        self._from = _compiled(module) if self._compiled else module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._from, name)

    def rows(self, columns: Any) -> Any:
        """A named tuple of arrays as the kernels read it quickest."""
        return columns if self._compiled else type(columns)(*(column.tolist() for column in columns))


@cache
def _compiled(module: types.ModuleType) -> types.SimpleNamespace:
    import numba

    world: dict[str, Any] = dict(vars(module))
    made_of = _fingerprint(module)
    for name in module.KERNELS:
        plain: Callable[..., Any] = getattr(module, name)
        twin = types.FunctionType(plain.__code__, world, name, plain.__defaults__)
        twin.__module__, twin.__qualname__ = module.__name__, f"{name}-{made_of}"
        counting: dict[str, Any] = {"_nrt": name not in module.LEAN}
        world[name] = numba.njit(twin, cache=True, nogil=True, **counting)
    return types.SimpleNamespace(**{name: world[name] for name in module.KERNELS})


def _fingerprint(module: types.ModuleType) -> str:
    """A hash of what the kernels of a module are compiled from: their code, and the constants that they name.

    Constants become part of the compiled code, also those of other modules; numba alone looks at the age of the kernel's own file.
    """
    hashed = hashlib.sha256()
    for name in module.KERNELS:
        code = getattr(module, name).__code__
        hashed.update(f"{name}\n{code.co_code!r}\n{code.co_consts!r}\n{name in module.LEAN}\n".encode())
        for used in code.co_names:
            value = getattr(module, used, None)
            if isinstance(value, (int, float, tuple, np.ndarray)):
                hashed.update(f"{used}\n{value.tolist() if isinstance(value, np.ndarray) else value!r}\n".encode())
    return hashed.hexdigest()[:12]
