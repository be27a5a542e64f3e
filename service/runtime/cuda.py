"""What only CUDA has: availability, graphs, waiting. Small, because only a machine with a GPU can test this.

Does not know models or batches: a call is a function without arguments that works on tensors in fixed memory.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Call = Callable[[], tuple[Tensor, Tensor]]

# TorchScript profiles the first call of each size and compiles in the second; some more to be sure.
_NUM_WARM_UP_CALLS = 5


def pick_device(wanted: str) -> torch.device:
    """Returns the device that `auto`, `cpu` or `cuda` means on this machine.

    Raises:
        RuntimeError: CUDA is asked for and not available.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("CUDA is not available on this machine")
    return torch.device(wanted)


def reason_of(error: BaseException) -> str:
    """Returns in one line why something failed on CUDA.

    The line is of the first error: an aborted capture fails once more when it ends. A script's error is a
    traceback, and CUDA's error has advice after it; one line of either names the cause.
    """
    while error.__context__ is not None:
        error = error.__context__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    naming_error = [line for line in lines if "error: " in line.lower()]
    return next(iter(naming_error + lines), type(error).__name__)


class CudaGraphs:
    """Records calls as CUDA graphs, each of which replays with one launch.

    All graphs share one pool of memory, and a replay may overwrite the results of other graphs: replay one
    graph, take the results, then replay the next.
    """

    pins_memory = True
    """Host memory must be pinned, so that the device copies from it directly."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._memory = torch.cuda.graph_pool_handle()
        self._graphs: list[torch.cuda.CUDAGraph] = []

    def record(self, call: Call) -> Call:
        """Returns a replay of the call's graph, with results in the same memory each time.

        Runs the call a few times first, because work that is done only once, such as compiling, cannot be
        recorded.

        Raises:
            RuntimeError: the call fails, or cannot be recorded, for example because it waits for the device.
        """
        graph = torch.cuda.CUDAGraph()
        self._graphs.append(graph)  # even if recording fails: torch's allocator goes on using the graph
        self._stream.wait_stream(torch.cuda.current_stream())
        # Around everything, because torch.cuda.graph leaves its own stream current when a recording fails.
        with torch.cuda.stream(self._stream):
            for _ in range(_NUM_WARM_UP_CALLS):
                call()
            # Other threads may use CUDA at the same time; their calls must not break this recording.
            with torch.cuda.graph(
                graph, pool=self._memory, stream=self._stream, capture_error_mode="thread_local"
            ):
                results = call()

        def replay() -> tuple[Tensor, Tensor]:
            graph.replay()
            return results

        return replay

    def wait(self) -> None:
        """Returns when the device has finished all that was asked of it."""
        torch.cuda.current_stream().synchronize()
