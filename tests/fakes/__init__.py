"""Fakes that tests share: models, time and a loop by hand, one engine, a server, a stream's far side."""

from tests.fakes.loop import ManualClock, ManualLoop
from tests.fakes.models import (
    CPU,
    FAULT,
    FAULT_TEXT,
    HUGE,
    INTERVAL_NS,
    Alone,
    Counter,
    Other,
    Recurrence,
    Sharper,
    bits,
    manifest_of,
    random_x,
    recurrence,
    renamed,
    save,
)
from tests.fakes.rig import Rig, applied, block_of, session_table, settings
from tests.fakes.served import Served
from tests.fakes.streams import Refusal, answer, changed, ending, next_message, room, talk, turn

__all__ = [
    "CPU",
    "FAULT",
    "FAULT_TEXT",
    "HUGE",
    "INTERVAL_NS",
    "Alone",
    "Counter",
    "ManualClock",
    "ManualLoop",
    "Other",
    "Recurrence",
    "Refusal",
    "Rig",
    "Served",
    "Sharper",
    "answer",
    "applied",
    "bits",
    "block_of",
    "changed",
    "ending",
    "manifest_of",
    "next_message",
    "random_x",
    "recurrence",
    "renamed",
    "room",
    "save",
    "session_table",
    "settings",
    "talk",
    "turn",
]
