"""A step that names its session: into work for its engine, the session being opened or fetched first."""

from collections.abc import Callable

from streamcell.v1 import streamcell_pb2 as pb

from service.catalog.catalog import Catalog, NotResident, TakeOver, is_missing
from service.catalog.versions import NotLoaded
from service.engine.engine import Engine
from service.engine.session_ref import SessionRef
from service.engine.work import Step
from service.errors import Reason, StreamcellError
from service.rpc.methods import Call
from service.servicers import values
from service.servicers.streamcell import convert


def step_work(
    catalog: Catalog, call: Call, request: pb.StepRequest, on_done: Callable[[Step], None]
) -> tuple[SessionRef, Step]:
    """Returns the session of a step and the work; opens the session where there is no store.

    Raises:
        NotResident: the session may be in the store, or is to be opened there, or to move to another version,
            or its model is to be loaded: `fetch`, and try again.
        StreamcellError: there is no such session and the step does not open one, the model is another, or a
            value is wrong; nothing is opened then.
    """
    try:
        session = catalog.find(call.principal, request.session_id)
    except NotResident:
        raise
    except StreamcellError as error:
        if not _may_open(request, error):
            raise
        try:
            _, x = _first_row(catalog, request)
        except NotLoaded:
            raise NotResident([request.session_id]) from None
        session = catalog.open(call.principal, request.session_id, request.model)
    else:
        catalog.check_model(session.engine, request.session_id, request.model)
        x = values.row(session.engine, request.x)
    return session, convert.step(session, request, x, on_done)


async def fetch(catalog: Catalog, call: Call, request: pb.StepRequest) -> None:
    """Brings a step's session into memory from the store, or opens it there if the step may open it.

    Raises:
        StreamcellError: as `step_work`, or the store cannot give it.
    """
    try:
        await catalog.fetch(call.principal, request.session_id, take_over_of(request))
    except StreamcellError as error:
        if not _may_open(request, error):
            raise
        await catalog.versions.load(request.model)
        _first_row(catalog, request)
        # One that another request has opened meanwhile is found when the step is tried again.
        try:
            await catalog.create(call.principal, request.session_id, request.model)
        except StreamcellError as conflict:
            if conflict.reason is not Reason.SESSION_EXISTS:
                raise


def take_over_of(request: "pb.StepRequest | pb.PrimeRequest") -> TakeOver:
    """Returns when a request takes its session over from another server."""
    return TakeOver.IF_INDEXED if request.HasField("step_index") else TakeOver.NEVER


def _may_open(request: pb.StepRequest, error: StreamcellError) -> bool:
    return is_missing(error) and request.HasField("step_index") and request.step_index == 0


def _first_row(catalog: Catalog, request: pb.StepRequest) -> tuple[Engine, bytes]:
    """Returns the engine and the row of a step that is to open its session, all checked."""
    engine = catalog.versions.choose(request.model)
    x = values.row(engine, request.x)
    convert.check_first_time(engine, request)
    return engine, x
