"""NVIDIA's client against a server; test_tritonclient runs it in an environment of its own.

Reads {"target": "HOST:PORT", "x": {ID: [[...], ...], ...}} as JSON from standard input. ID is a JSON value as
text, so that 7 and "7" differ. Each way of calling runs every sequence and prints its predictions as
hexadecimal float32s: {WAY: {ID: "..."}}. The server's description of itself is under "about".
"""

import asyncio
import json
import queue
import sys

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

MODEL = "mackey-glass"
ANSWER_SECONDS = 120  # never takes long, on a busy machine either


def step(module, row):
    """Returns the inputs of one step."""
    x = np.array([row], np.float32)
    given = module.InferInput("x", list(x.shape), "FP32")
    given.set_data_from_numpy(x)
    return [given]


def flags(rows, at):
    """Returns the flags of a sequence's step."""
    return {"sequence_start": at == 0, "sequence_end": at == len(rows) - 1}


def hexadecimal(results):
    """Returns the bytes of predictions, in order, as hexadecimal text."""
    return b"".join(result.as_numpy("y").astype("<f4").tobytes() for result in results).hex()


def about(client):
    """Returns the server's description of itself."""
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready(MODEL),
        "unknown_ready": client.is_model_ready("unknown"),
        "server": client.get_server_metadata(as_json=True),
        "model": client.get_model_metadata(MODEL, as_json=True),
        "config": client.get_model_config(MODEL, as_json=True),
        "index": client.get_model_repository_index(as_json=True),
        "statistics": client.get_inference_statistics(MODEL, as_json=True),
    }


def sync_unary(client, sequences):
    """Sends one call after another, the sequences in turn."""
    found = {name: [] for name in sequences}
    for at in range(max(map(len, sequences.values()))):
        for name, rows in sequences.items():
            result = client.infer(
                MODEL,
                step(triton, rows[at]),
                request_id=name,
                outputs=[triton.InferRequestedOutput("y")],
                sequence_id=json.loads(name),
                **flags(rows, at),
            )
            assert result.get_response().id == name
            found[name].append(result)
    return {name: hexadecimal(results) for name, results in found.items()}


def sync_stream(client, sequences):
    """Sends all requests of all sequences on one stream before it reads an answer."""
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    found = {name: [] for name in sequences}
    for at in range(max(map(len, sequences.values()))):
        for name, rows in sequences.items():
            client.async_stream_infer(
                MODEL,
                step(triton, rows[at]),
                request_id=name,
                sequence_id=json.loads(name),
                enable_empty_final_response=True,
                priority=1,
                timeout=60_000_000,
                **flags(rows, at),
            )
    for _ in range(sum(map(len, sequences.values()))):
        result, error = answers.get(timeout=ANSWER_SECONDS)
        assert error is None, error
        found[result.get_response().id].append(result)
    client.stop_stream()
    return {name: hexadecimal(results) for name, results in found.items()}


def stream_errors(client):
    """Returns what a stream answers to a request without a start, and to a good one behind it."""
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    client.async_stream_infer(MODEL, step(triton, [1.0]), sequence_id=12345)
    client.async_stream_infer(
        MODEL, step(triton, [1.0]), sequence_id=12345, sequence_start=True, sequence_end=True
    )
    (_, error), (result, _) = answers.get(timeout=ANSWER_SECONDS), answers.get(timeout=ANSWER_SECONDS)
    client.stop_stream()
    return {"error": error.message(), "result": hexadecimal([result])}


def unary_error(client):
    """Returns the error of a request without a start."""
    try:
        client.infer(MODEL, step(triton, [1.0]), sequence_id=12345)
    except InferenceServerException as error:
        return {"status": error.status(), "message": error.message()}
    return None


def whole(client, sequences):
    """Sends every sequence in one request of its own."""
    found = {}
    for name, rows in sequences.items():
        x = np.array([rows], np.float32)
        given = triton.InferInput("x", list(x.shape), "FP32")
        given.set_data_from_numpy(x)
        found[name] = hexadecimal([client.infer(MODEL, [given])])
    return found


async def aio_unary(target, sequences):
    """Runs all sequences at once, each waiting for its answers."""
    async with triton_aio.InferenceServerClient(target) as client:

        async def run(name, rows):
            results = [
                await client.infer(
                    MODEL, step(triton_aio, row), sequence_id=json.loads(name), **flags(rows, at)
                )
                for at, row in enumerate(rows)
            ]
            return name, hexadecimal(results)

        return dict(await asyncio.gather(*(run(*each) for each in sequences.items())))


async def aio_stream(target, sequences):
    """Runs all sequences at once, each on a stream of its own."""
    async with triton_aio.InferenceServerClient(target) as client:

        async def run(name, rows):
            async def requests():
                for at, row in enumerate(rows):
                    yield {
                        "model_name": MODEL,
                        "inputs": step(triton_aio, row),
                        "sequence_id": json.loads(name),
                        **flags(rows, at),
                    }

            results = []
            async for result, error in client.stream_infer(requests()):
                assert error is None, error
                results.append(result)
            return name, hexadecimal(results)

        return dict(await asyncio.gather(*(run(*each) for each in sequences.items())))


def main():
    """Runs every way of calling."""
    asked = json.load(sys.stdin)
    target, sequences = asked["target"], asked["x"]
    with triton.InferenceServerClient(target) as client:
        found = {
            "sync unary": sync_unary(client, sequences),
            "sync stream": sync_stream(client, sequences),
            "whole": whole(client, sequences),
            "stream errors": stream_errors(client),
            "unary error": unary_error(client),
        }
        found["aio unary"] = asyncio.run(aio_unary(target, sequences))
        found["aio stream"] = asyncio.run(aio_stream(target, sequences))
        found["about"] = about(client)
    json.dump(found, sys.stdout)


main()
