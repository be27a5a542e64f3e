"""A step that names its session: into work for its engine, the session being opened or fetched first."""

from collections.abc import Callable

from streamcell.v1 import streamcell_pb2 as pb

from service.catalog.catalog import Catalog, NotResident, Reach, is_missing
from service.catalog.versions import NotLoaded
from service.engine.engine import Engine
from service.engine.work import Step
from service.errors import Reason, StreamcellError
from service.rpc.methods import Call
from service.servicers import values
from service.servicers.streamcell import convert


def step_work(
    catalog: Catalog, call: Call, request: pb.StepRequest, on_done: Callable[[Step], None]
) -> tuple[Engine, Step]:
    """Returns the work that a step asks for, and its engine; opens the session where there is no store.

    Raises:
        NotResident: the session may be in the store, or is to be opened there, or to move to another version,
            or its model is to be loaded: `bring`, and try again.
        StreamcellError: there is no such session and the step does not open one, the model is another, or a
            value is wrong; nothing is opened then.
    """
    try:
        engine, slot = catalog.find(call.principal, request.session_id)
    except NotResident:
        raise
    except StreamcellError as error:
        if not _may_open(request, error):
            raise
        try:
            engine, x = _first_row(catalog, request)
        except NotLoaded:
            raise NotResident([request.session_id]) from None
        engine, slot = catalog.open(call.principal, request.session_id, request.model)
    else:
        catalog.check_model(engine, request.session_id, request.model)
        x = values.row(engine, request.x)
    return engine, convert.step(engine, slot, engine.sessions.generation.item(slot), request, x, on_done)


async def bring(catalog: Catalog, call: Call, request: pb.StepRequest) -> None:
    """Has a step's session in memory: from the store, or opened there if the step may open it.

    Raises:
        StreamcellError: as `step_work`, or the store cannot give it.
    """
    try:
        await catalog.fetch(call.principal, request.session_id, reach_of(request))
    except StreamcellError as error:
        if not _may_open(request, error):
            raise
        await catalog.load(request.model)
        _first_row(catalog, request)
        # One that another request has opened meanwhile is found when the step is tried again.
        try:
            await catalog.create(call.principal, request.session_id, request.model)
        except StreamcellError as conflict:
            if conflict.reason is not Reason.SESSION_EXISTS:
                raise


def reach_of(request: "pb.StepRequest | pb.PrimeRequest") -> Reach:
    """Returns how far a request goes for its session."""
    return Reach.INDEXED if request.HasField("step_index") else Reach.OWN


def _may_open(request: pb.StepRequest, error: StreamcellError) -> bool:
    return is_missing(error) and request.HasField("step_index") and request.step_index == 0


def _first_row(catalog: Catalog, request: pb.StepRequest) -> tuple[Engine, bytes]:
    """Returns the engine and the row of a step that is to open its session, all checked."""
    engine = catalog.choose(request.model)
    x = values.row(engine, request.x)
    convert.check_first_time(engine, request)
    return engine, x
