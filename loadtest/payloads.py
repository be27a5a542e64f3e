"""The messages of a load test, serialised before it begins. Does not know how they are sent."""

import numpy as np
from streamcell.v1 import streamcell_pb2 as pb

_HISTORY_STEPS = 8  # of a session before its first forecast
_NUM_VARIANTS = 4  # messages sent in turn, so that the input changes


class Payloads:
    """Messages for a model: random values in [0, 1), the same in every run.

    Times are left out: the server then advances by the model's interval.
    """

    def __init__(self, num_inputs: int, steps_per_message: int) -> None:
        random = np.random.default_rng(0)
        shape = (_NUM_VARIANTS, steps_per_message, num_inputs)
        self._rows = random.random(shape, np.float32)  # (V, N, F)
        packed = [rows.astype("<f4").tobytes() for rows in self._rows]
        steps = [pb.StepRequest(x=rows[0].tolist()) for rows in self._rows]
        self.stream_steps = [pb.StreamRequest(step=step).SerializeToString() for step in steps]
        self.stream_frames = [
            pb.StreamRequest(frame=pb.Frame(x_raw=raw)).SerializeToString() for raw in packed
        ]
        self._history_raw = random.random((_HISTORY_STEPS, num_inputs), np.float32).astype("<f4").tobytes()
        # The bytes of two messages one after the other are those of both merged. So the id is put in front.
        self._steps = [step.SerializeToString() for step in steps]
        self._primes = [pb.PrimeRequest(x_raw=raw).SerializeToString() for raw in packed]

    def steps(self, session_id: str) -> list[bytes]:
        """Returns the Step requests of a session."""
        prefix = pb.StepRequest(session_id=session_id).SerializeToString()
        return [prefix + step for step in self._steps]

    def primes(self, session_id: str) -> list[bytes]:
        """Returns the Prime requests of a session."""
        prefix = pb.PrimeRequest(session_id=session_id).SerializeToString()
        return [prefix + prime for prime in self._primes]

    def history(self, session_id: str) -> bytes:
        """Returns the Prime request that gives a session its first steps, before forecasts."""
        return pb.PrimeRequest(session_id=session_id, x_raw=self._history_raw).SerializeToString()

    def first_step(self, session_id: str, time_ns: int) -> bytes:
        """Returns the Step request that sets a session's time, for models that use times."""
        request = pb.StepRequest(session_id=session_id, x=self._rows[0, 0].tolist(), time_ns=time_ns)
        return request.SerializeToString()


def forecasts(session_id: str, horizon_steps: int, num_future: int) -> list[bytes]:
    """Returns the one Forecast request of a session, with values in [0, 1) for the model's future inputs."""
    future = np.random.default_rng(0).random(horizon_steps * num_future, np.float32)  # (H * K)
    request = pb.ForecastRequest(session_id=session_id, horizon_steps=horizon_steps, future=future.tolist())
    return [request.SerializeToString()]
