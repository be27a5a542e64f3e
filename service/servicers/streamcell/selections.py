"""The sessions of a frame, by the versions of the model that they run on. Knows neither ids nor numbers."""

import dataclasses

import numpy as np

from service import errors
from service.arrays import Int64s
from service.engine.engine import Engine
from service.errors import StreamcellError

Split = list[tuple[Engine, Int64s]]
"""Engines, and the positions of each one's sessions."""


@dataclasses.dataclass(frozen=True, slots=True)
class EngineEntries:
    """The entries of a frame whose sessions run on one engine.

    `positions` [k] are the entries' places in the frame; slots and generations [k] are their sessions.
    """

    engine: Engine
    positions: Int64s
    slots: Int64s
    generations: Int64s


@dataclasses.dataclass(frozen=True, slots=True)
class Selection:
    """The sessions of a frame of `count` entries, by the versions of the model that they run on.

    `missing`: what is wrong with the sessions that are on no engine, by position.
    """

    count: int
    parts: list[EngineEntries]
    missing: dict[int, StreamcellError]


def split(engines: list[Engine], field: str) -> Split:
    """Returns the engines that a frame's sessions run on, and the positions of each one's sessions.

    Versions of one model run in one frame as long as they take and give as many values.
    """
    if not engines:
        raise errors.invalid_argument(
            "session_ids", "the frame names no session, and none is bound to the stream"
        )
    different = list(dict.fromkeys(engines))
    if len(different) == 1:
        return [(different[0], np.arange(len(engines)))]
    if len({(each.name, len(each.manifest.inputs), len(each.manifest.outputs)) for each in different}) > 1:
        names = ", ".join(sorted(str(engine.model) for engine in different))
        raise errors.invalid_argument(field, f"the sessions run on {names}: one model a frame")
    return [
        (engine, np.array([at for at, each in enumerate(engines) if each is engine])) for engine in different
    ]


def check_once(slots: Int64s, field: str) -> None:
    """Checks that no session of an engine stands twice in a frame.

    Raises:
        StreamcellError: INVALID_ARGUMENT.
    """
    if len(np.unique(slots)) < len(slots):
        raise errors.invalid_argument(field, "a session stands twice: give its steps in one entry")


def select_live(split: Split, slots: Int64s, generations: Int64s, is_each_once: bool) -> Selection:
    """Selects the sessions [N] that have not ended since they were bound; the others are missing."""
    parts: list[EngineEntries] = []
    missing: dict[int, StreamcellError] = {}
    for engine, at in split:
        part = EngineEntries(engine, at, slots, generations)
        if len(split) > 1:
            part = EngineEntries(engine, at, slots[at], generations[at])
        ended = engine.sessions.generation[part.slots] != part.generations
        if ended.any():
            missing.update({each: errors.session_ended(None) for each in at[ended].tolist()})
            part = EngineEntries(engine, at[~ended], part.slots[~ended], part.generations[~ended])
        if not len(part.positions):
            continue
        if not is_each_once:
            check_once(part.slots, "session_raw")
        parts.append(part)
    if not parts:
        raise errors.session_ended(None)
    return Selection(len(slots), parts, missing)
