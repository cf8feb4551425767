"""The processes of a command: how one begins, and the same work on many things over the processors of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.abc import MetaPathFinder
from multiprocessing import connection
from types import ModuleType
from typing import TypeVar

Thing = TypeVar("Thing")
Result = TypeVar("Result")


class _NotYet(MetaPathFinder):
    """Does not find pandas, once."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if fullname == "pandas":
            sys.meta_path.remove(self)
            raise ModuleNotFoundError("pyarrow does without pandas in this process", name=fullname)


def without_pandas() -> None:
    """Lets pyarrow do without pandas in this process; said before anything uses either.

    With the first list that it is given, pyarrow asks for pandas, once, and so has it loaded wherever it is installed: longer than most
    commands take, and 40 MB. For processes of our own alone: no table of pyarrow becomes a DataFrame in them.
    """
    sys.meta_path.insert(0, _NotYet())


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def each(work: Callable[[Thing], Result], things: Sequence[Thing], *, processes: int | None = None) -> Iterator[Result]:
    """What `work` gives of each of these things, in their order.

    Each process (`processes` of them, else one a processor) takes the next thing when it is done with one. They start from nothing,
    so that no lock and no thread of this one lives on in them: `work` is a function of a module, and what goes in and out is pickled.
    With one process, or one thing, all is done here. What `work` raises is raised, and what is not begun is left. When this process
    ends, however it does, they end.
    """
    count = min(processes or processors(), len(things))
    if count < 2:
        yield from map(work, things)
        return
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"), initializer=_follow) as pool:
        try:
            yield from pool.map(work, things)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _follow() -> None:
    """Begins a process that ends with the one that started it, which alone answers to Ctrl-C."""
    without_pandas()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    started_by = multiprocessing.parent_process()
    assert started_by is not None

    def end() -> None:
        connection.wait([started_by.sentinel])
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
