"""The sessions of a frame, grouped by the engine that runs them, one for each version of the model.

Does not know how a frame names its sessions.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from service import errors
from service.arrays import Int64s
from service.engine.engine import Engine
from service.errors import StreamcellError

EngineSplit = list[tuple[Engine, Int64s]]
"""Each engine, with the positions in the frame of the sessions that it runs."""


@dataclasses.dataclass(frozen=True, slots=True)
class EngineEntries:
    """The entries of a frame whose sessions run on one engine.

    `positions` [k]: where the entries are in the frame. `slots`, `generations` [k]: the entries' sessions.
    """

    engine: Engine
    positions: Int64s
    slots: Int64s
    generations: Int64s


@dataclasses.dataclass(frozen=True, slots=True)
class Selection:
    """The sessions of a frame of `count` entries, grouped by the engine that runs them.

    `missing`: why an entry has no session to run, by position.
    """

    count: int
    parts: list[EngineEntries]
    missing: dict[int, StreamcellError]


def split_by_engine(engines: list[Engine], field: str) -> EngineSplit:
    """Groups a frame's sessions by the engine that runs them; `engines` [N] has each session's engine.

    Several versions of one model may share a frame if they take and give equally many values.

    Raises:
        StreamcellError: INVALID_ARGUMENT, there are no sessions, or the engines cannot share a frame.
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


def check_unique(slots: Int64s, field: str) -> None:
    """Checks that no session of an engine stands twice in a frame.

    Raises:
        StreamcellError: INVALID_ARGUMENT, a slot stands twice.
    """
    if len(np.unique(slots)) < len(slots):
        raise errors.invalid_argument(field, "a session stands twice: give its steps in one entry")


def select_live(
    split: EngineSplit,
    slots: Int64s,
    generations: Int64s,
    *,
    are_unique: bool,
    why_missing: Callable[[int], StreamcellError],
) -> Selection:
    """Selects the sessions [N] that are still in their slots; the others become `missing`.

    Args:
        split: the sessions by engine.
        slots, generations: the sessions.
        are_unique: whether it is known that no session stands twice.
        why_missing: returns why the session at a position is not in its slot.

    Raises:
        StreamcellError: INVALID_ARGUMENT, a session stands twice; the first session's, if all are missing.
    """
    parts: list[EngineEntries] = []
    missing: dict[int, StreamcellError] = {}
    for engine, positions in split:
        part = EngineEntries(engine, positions, slots, generations)
        if len(split) > 1:
            part = EngineEntries(engine, positions, slots[positions], generations[positions])
        ended = engine.sessions.generation[part.slots] != part.generations
        if ended.any():
            missing.update({each: why_missing(each) for each in positions[ended].tolist()})
            part = EngineEntries(engine, positions[~ended], part.slots[~ended], part.generations[~ended])
        if not len(part.positions):
            continue
        if not are_unique:
            check_unique(part.slots, "session_raw")
        parts.append(part)
    if not parts:
        raise missing[min(missing)]
    return Selection(len(slots), parts, missing)
