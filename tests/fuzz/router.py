"""Any bytes to any methods of a server: calls are answered or refused, streams end, and nothing breaks.

An input is a byte of flags and then calls: a method's number, a length (2 bytes) and so many bytes. Messages
to one streaming method go into one stream.
"""

import asyncio
import struct

import numpy as np
from google.protobuf import descriptor_pool, message_factory
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from streamcell.v1 import streamcell_pb2 as pb

from service.rpc.methods import Unary
from service.servicers.inference import servicer as inference
from service.servicers.standard import health
from service.servicers.streamcell import servicer as streamcell
from tests.fuzz import mutations
from tests.fuzz.world import T0, World
from tests.inference import infer

AT_ONCE, STORE_AWAY, LATER = 1, 2, 4
WORLD = World()
LATER_NS = 10_000_000_000


def request_types():
    """Returns the methods' paths, in a fixed order, and the type of their requests."""
    found = {}
    for service in (
        streamcell.SERVICE,
        inference.SERVICE,
        health.SERVICE,
        "grpc.reflection.v1alpha.ServerReflection",
    ):
        for method in descriptor_pool.Default().FindServiceByName(service).methods:
            found[f"/{service}/{method.name}"] = message_factory.GetMessageClass(method.input_type)
    return found


TYPES = request_types()
PATHS = list(TYPES)


def encode(flags, calls):
    """Returns an input: flags, and calls as pairs of a path and bytes."""
    return bytes([flags]) + b"".join(
        struct.pack("<BH", PATHS.index(path), len(raw)) + raw for path, raw in calls if len(raw) < 1 << 16
    )


def decode(raw):
    """Returns the flags and the calls of an input; any bytes are one."""
    calls, at = [], 1
    while at + 3 <= len(raw):
        number, size = struct.unpack_from("<BH", raw, at)
        calls.append((PATHS[number % len(PATHS)], raw[at + 3 : at + 3 + size]))
        at += 3 + size
    return raw[0] if raw else 0, calls


def run(raw):
    """Makes the calls of an input."""
    flags, calls = decode(raw)

    async def behaviour(world):
        unary, streams = [], {}
        for path, message in calls[:16]:
            if path not in world.served.router.methods:
                continue
            if isinstance(world.served.router.methods[path], Unary):
                unary.append(world.answer_raw(path, message))
            else:
                streams.setdefault(path, []).append(message)
        if flags & STORE_AWAY:
            world.store.trouble = "gone"
        if flags & LATER:
            world.served.clock.now_ns += LATER_NS
        conversations = [world.converse(path, messages) for path, messages in streams.items()]
        if flags & AT_ONCE:
            await asyncio.gather(*unary, *conversations)
        else:
            for each in [*unary, *conversations]:
                await each

    WORLD.run(behaviour)


def mutate(raw, chance):
    """Changes a message by its fields, or the calls: one more, one less, another order, another method."""
    flags, calls = decode(raw)
    kind = chance.randrange(10)
    if not calls or kind == 0:
        return mutations.of_bytes(raw, chance)
    at = chance.randrange(len(calls))
    if kind == 1:
        flags ^= chance.choice([AT_ONCE, STORE_AWAY, LATER])
    elif kind == 2:
        calls.insert(at, chance.choice(SEED_CALLS))
    elif kind == 3 and len(calls) > 1:
        del calls[at]
    elif kind == 4:
        chance.shuffle(calls)
    else:
        path, message = calls[at]
        calls[at] = path, mutations.of_message(TYPES[path], message, chance)
    return encode(flags, calls)


def seed_calls():
    """Returns calls of good form, at least one to each method."""
    at = f"/{streamcell.SERVICE}/"
    x = [1.0, 2.0]
    step = pb.StepRequest(session_id="live", x=x, step_index=2)
    calls = [
        (at + "Step", step),
        (at + "Step", pb.StepRequest(session_id="stored", x=x)),
        (at + "Step", pb.StepRequest(session_id="theirs", x=x, step_index=1)),
        (at + "Step", pb.StepRequest(session_id="timed", x=x, time_ns=T0 + 1)),
        (at + "Step", pb.StepRequest(session_id="durable", x=x)),
        (at + "Step", pb.StepRequest(session_id="new", x=x, step_index=0, model="recurrence")),
    ]
    for path, request_type in TYPES.items():
        message = request_type()
        fields = request_type.DESCRIPTOR.fields_by_name
        if "session_id" in fields:
            message.session_id = "live"
        if "horizon_steps" in fields:
            message.horizon_steps = 3
        if "model_name" in fields:
            message.model_name = "recurrence"
        calls.append((path, message))
    calls += [(f"/{inference.SERVICE}/{name}", each) for name, each in seed_inferences()]
    calls.append((f"/{health.SERVICE}/Check", health_pb2.HealthCheckRequest(service=streamcell.SERVICE)))
    reflection = reflection_pb2.ServerReflectionRequest(list_services="")
    calls.append(("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", reflection))
    calls += [(at + "Stream", each) for each in seed_stream()]
    return [(path, message.SerializeToString()) for path, message in calls]


def seed_stream():
    """Returns messages of a stream: its configuration, a step, and frames by id and by number."""
    x, one = np.float32([1.0, 2.0]).tobytes(), np.uint32([1, 1]).tobytes()
    return [
        pb.StreamRequest(config=pb.StreamConfig(session_ids=["live", "theirs"])),
        pb.StreamRequest(request_id=1, step=pb.StepRequest(session_id="live", x=[1.0, 2.0])),
        pb.StreamRequest(request_id=2, frame=pb.Frame(session_ids=["live", "timed"], x_raw=2 * x)),
        pb.StreamRequest(
            frame=pb.Frame(session_raw=np.uint32([0, 1]).tobytes(), num_steps_raw=one, x_raw=2 * x)
        ),
    ]


def seed_inferences():
    """Returns requests of the Open Inference Protocol: alone, and in a sequence."""
    x = [[1.0, 2.0]]
    sequence = infer(x, is_raw=False, sequence_id=7, sequence_start=True)
    return [("ModelInfer", infer(x)), ("ModelInfer", sequence), ("ModelStreamInfer", sequence)]


SEED_CALLS = seed_calls()


def seeds():
    """Returns each call on its own, a stream of all messages, and calls that come at once."""
    stream = [call for call in SEED_CALLS if call[0].endswith("/Stream")]
    alone = [encode(0, [call]) for call in SEED_CALLS]
    return [*alone, encode(LATER, stream), encode(STORE_AWAY, stream), encode(AT_ONCE, SEED_CALLS[:12])]
