"""What a client keeps count of, without a connection."""

import dataclasses

from streamcell import Limits, SessionInfo
from streamcell.position import SessionPosition

INFO = SessionInfo(
    session_id="s",
    model_name="m",
    model_version="1",
    next_step_index=0,
    num_durable_steps=0,
    last_time_ns=0,
    ttl_seconds=0.0,
    durable=False,
    epoch=1,
)


def test_a_session_found_at_its_start_was_not_reset():
    """Another client of the session may have gone on from there: its steps are not undone."""
    position = SessionPosition(INFO, Limits())
    position.adopt(INFO)
    assert not position.must_reset(dataclasses.replace(INFO, next_step_index=5, epoch=2))


def test_a_reset_of_unknown_outcome_is_repeated_on_another_server():
    """The session stands at its start on one server; another may have the steps before the reset."""
    position = SessionPosition(dataclasses.replace(INFO, next_step_index=5), Limits())
    position.begin_reset()
    position.adopt(INFO)
    assert position.must_reset(dataclasses.replace(INFO, next_step_index=5, epoch=2))
