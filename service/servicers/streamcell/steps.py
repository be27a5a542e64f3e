"""Turns a step that names its session by id into work, for unary calls and streams alike.

Owns the rule by which a step opens its session. Does not know how a step is answered.
"""

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


def prepare_step(
    catalog: Catalog, call: Call, request: pb.StepRequest, on_done: Callable[[Step], None]
) -> tuple[SessionRef, Step]:
    """Returns a step's session and the work to submit; a first step opens its session if there is no store.

    Raises:
        NotResident: the session may be in the store, has to be opened there or to move to another version, or
            its model has to be loaded: await `fetch_or_open`, then try again.
        StreamcellError: there is no such session and the step does not open one, the session runs on another
            model, or a value is wrong; no session is opened.
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
    return session, convert.step_work(session, request, x, on_done)


async def fetch_or_open(catalog: Catalog, call: Call, request: pb.StepRequest) -> None:
    """Fetches a step's session from the store into memory, or opens the session if the step may open one.

    Raises:
        StreamcellError: as `prepare_step`, or the session cannot be fetched.
    """
    try:
        await catalog.fetch(call.principal, request.session_id, take_over_for(request))
    except StreamcellError as error:
        if not _may_open(request, error):
            raise
        await catalog.versions.load(request.model)
        _first_row(catalog, request)
        try:
            await catalog.create(call.principal, request.session_id, request.model)
        except StreamcellError as conflict:
            # A session that another request opened meanwhile is found when the step is tried again.
            if conflict.reason is not Reason.SESSION_EXISTS:
                raise


def take_over_for(request: "pb.StepRequest | pb.PrimeRequest") -> TakeOver:
    """Returns whether a request may take its session over from another server: only with a step index."""
    return TakeOver.IF_INDEXED if request.HasField("step_index") else TakeOver.NEVER


def _may_open(request: pb.StepRequest, error: StreamcellError) -> bool:
    return is_missing(error) and request.HasField("step_index") and request.step_index == 0


def _first_row(catalog: Catalog, request: pb.StepRequest) -> tuple[Engine, bytes]:
    """Returns the engine and packed row of a step that opens its session; checks model, row and time."""
    engine = catalog.versions.choose(request.model)
    x = values.row(engine, request.x)
    convert.check_first_time(engine, request)
    return engine, x
