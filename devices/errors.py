"""The one error tree. Every error says what happened, why, and what to do next.

    PumpledgerError
    ├── InputError      the caller's: a file, an order, a rule set, an option
    ├── PumpError       the pump's: what it sent cannot be what it means
    ├── LinkError       the link's: a port, a radio, a broker
    └── StorageError    ours: the store or the lake

Messages carry no patient, and a serial number only masked (`masked`).
"""

from __future__ import annotations


class PumpledgerError(Exception):
    """Base of all errors that a person is meant to read.

    `code` is stable and short, for scripts; `what`, `why` and `do` are sentences.
    """

    def __init__(self, what: str, *, why: str = "", do: str = "", code: str = "") -> None:
        self.what, self.why, self.do = what, why, do
        self.code = code or type(self).__name__
        super().__init__(" ".join(part for part in (what, why, do) if part))


class InputError(PumpledgerError):
    """The caller's: a file, an order, a rule set or an option is wrong."""


class PumpError(PumpledgerError):
    """The pump's: it answered, but not with what was asked."""


class LinkError(PumpledgerError):
    """The link's: the port, the radio or the broker does not carry bytes."""


class StorageError(PumpledgerError):
    """Ours: the store or the lake cannot be read or written."""


def masked(pump_id: str) -> str:
    """`paradigm:578398` as `paradigm:…98`: a serial is an identifier, so logs and errors show its end only."""
    family, _, serial = pump_id.partition(":")
    return f"{family}:…{serial[-2:]}" if serial else pump_id
