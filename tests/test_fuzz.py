"""The fuzz target of every family, for a moment; and that it finds what a decoder gets wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest

from devices.contract import Capture, Decoded
from tests import conformance as kit
from tests import fuzz

A_MOMENT = fuzz.TOGETHER + 100


@pytest.mark.parametrize("family", kit.FAMILIES)
def test_damaged_bytes_of_every_family_are_read_or_put_aside(family: str) -> None:
    runs = list(fuzz.fuzz(family, 0, most=A_MOMENT))
    assert [done for done, _ in runs] == [fuzz.TOGETHER, A_MOMENT]
    assert [str(finding) for _, findings in runs for finding in findings] == []


def _raises(decode: Callable[[Capture], Decoded], capture: Capture) -> Decoded:
    if b"\x01" in capture.data[:1]:
        raise ZeroDivisionError("noise")
    return decode(capture)


def _drops(decode: Callable[[Capture], Decoded], capture: Capture) -> Decoded:
    told = decode(capture)
    return told._replace(faults=told.faults.slice(0, 0))


def _makes_up(decode: Callable[[Capture], Decoded], capture: Capture) -> Decoded:
    return decode(kit.replace(capture, data=capture.data + b"\nmade up"))


@pytest.mark.parametrize(
    ("wrong", "what"), [(_raises, "ZeroDivisionError"), (_drops, "noise was passed over"), (_makes_up, "name another capture")]
)
def test_a_decoder_that_is_wrong_is_found_with_the_input_that_shows_it(
    monkeypatch: pytest.MonkeyPatch, wrong: Callable[..., Decoded], what: str
) -> None:
    right = kit.ADAPTERS["canonical"]
    told = {name: getattr(right, name) for name in ("SHEET", "recognise", "read_files", "assemble", "split")}
    spoiled = SimpleNamespace(**told, decode=lambda capture: wrong(right.decode, capture))
    made = fuzz.ground("canonical")
    assert made.small
    monkeypatch.setitem(kit.ADAPTERS, "canonical", spoiled)  # type: ignore[arg-type]
    found = [finding for finding in fuzz.batch(made, 0, 0, 512) if what in finding.what]
    assert found
    alone = next(finding for finding in found if finding.count == 1)
    again: Sequence[fuzz.Finding] = list(fuzz.batch(made, 0, alone.first, 1))
    assert alone.what in [finding.what for finding in again]
    assert f"--first {alone.first} --count 1" in str(alone)
    assert alone.captures[0].data.hex() in str(alone)
