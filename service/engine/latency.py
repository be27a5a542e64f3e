"""The latency of one engine's steps: in the whole, in the queue, and in the cell call.

Does not know sessions.
"""

from collections.abc import Callable

from service.engine.work import Block, Step
from service.telemetry.metrics import ModelMetrics


class Latency:
    """Observes the latency of steps that were applied.

    Args:
        metrics: the model's instruments.
        clock: monotonic nanoseconds.
    """

    def __init__(self, metrics: ModelMetrics, clock: Callable[[], int]) -> None:
        self._metrics = metrics
        self._clock = clock

    def observe_steps(self, steps: list[Step], started_ns: int, compute_ns: int) -> None:
        """Observes the single steps of a batch that began at `started_ns` and shared one cell call."""
        metrics, now = self._metrics, self._clock()
        seconds = sorted(
            [(now - step.arrived_ns) * 1e-9 for step in steps if step.error is None and not step.is_repeat]
        )
        metrics.step_seconds.observe_all(seconds)
        metrics.queue_seconds.observe_all(seconds, offset=(started_ns - now) * 1e-9)
        metrics.compute_seconds.observe(compute_ns * 1e-9, len(seconds))

    def observe_block(self, block: Block) -> None:
        """Observes the steps of a block, which are answered together."""
        metrics, count = self._metrics, int(block.num_applied.sum())
        metrics.step_seconds.observe((self._clock() - block.arrived_ns) * 1e-9, count)
        metrics.queue_seconds.observe((block.started_ns - block.arrived_ns) * 1e-9, count)
        metrics.compute_seconds.observe(block.compute_ns * 1e-9, count)
