"""Messages of steps in files, for another load generator, which sends bytes as they are.

`python -m bench.payloads --target HOST:PORT --streams 64 --out FOLDER` opens 64 sessions and writes three
files with a payload for each session, as its length (uint32, little-endian) and its bytes: `unary.bin` (Step
requests), `first.bin` (the first message of a Stream, which binds its session) and `stream.bin` (a step on
that stream). No step has an index, so each may be sent again and again.
"""

import argparse
import pathlib
import sys
from collections.abc import Iterable

import grpc
from google.protobuf.message import Message
from streamcell.access import AccessError, access_of, add_options
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.v1 import streamcell_pb2_grpc as pb_grpc

from bench.cases import NUM_INPUTS
from bench.channel import failure, metadata_of, open_channel

_X = [0.1] * NUM_INPUTS


def framed(messages: Iterable[Message]) -> bytes:
    """Returns messages as payloads, each after its length."""
    raws = [message.SerializeToString() for message in messages]
    return b"".join(len(raw).to_bytes(4, "little") + raw for raw in raws)


def files(session_ids: list[str]) -> dict[str, bytes]:
    """Returns the content of each file, by its name."""
    step = pb.StreamRequest(step=pb.StepRequest(x=_X))
    firsts = (pb.StreamRequest(config=pb.StreamConfig(session_ids=[each])) for each in session_ids)
    return {
        "unary.bin": framed(pb.StepRequest(session_id=each, x=_X) for each in session_ids),
        "first.bin": framed(firsts),
        "stream.bin": framed([step] * len(session_ids)),
    }


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.payloads", description=__doc__.splitlines()[0])
    parser.add_argument("--target", required=True, help="HOST:PORT of a server with the reference artifact")
    parser.add_argument("--streams", type=int, default=64, help="number of sessions (%(default)s)")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for the files")
    add_options(parser)
    options = parser.parse_args(arguments)
    try:
        access = access_of(options, target=options.target)
    except AccessError as error:
        sys.stderr.write(f"bench.payloads: {error}\n")
        return 1
    session_ids = [f"payload-{number}" for number in range(options.streams)]
    with open_channel(options.target, access) as channel:
        stub = pb_grpc.StreamcellServiceStub(channel)
        try:
            for session_id in session_ids:
                request = pb.OpenSessionRequest(session_id=session_id)
                stub.OpenSession(request, metadata=metadata_of(access))
        except grpc.RpcError as error:
            sys.stderr.write(f"bench.payloads: {failure(options.target, access, error)}\n")
            return 1
    options.out.mkdir(parents=True, exist_ok=True)
    for name, content in files(session_ids).items():
        (options.out / name).write_bytes(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
