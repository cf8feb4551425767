"""Medtronic Paradigm 5xx/7xx: history pages, and their reading over the CareLink USB stick (docs/pump-formats.md §3 and §8).

What it is made of, each knowing only those before it: `sheet`, what its log tells; `records`, the layouts as data; `pages`, `decode`;
`log`, `assemble`; `totals`, `cross_check`; `link`, the stick and `download`; `files`, pages and recorded dialogues as files.
"""

from __future__ import annotations

from devices.paradigm.files import read_files, recognise
from devices.paradigm.link import HELLO, download, is_hello
from devices.paradigm.log import assemble
from devices.paradigm.pages import decode, decode_all
from devices.paradigm.sheet import SHEET
from devices.paradigm.totals import cross_check

__all__ = ["HELLO", "SHEET", "assemble", "cross_check", "decode", "decode_all", "download", "is_hello", "read_files", "recognise"]
