"""What only CUDA has: being there or not, graphs, waiting. Kept apart and small: to try it takes a GPU.

Does not know models or batches: a call is a function of nothing that works on tensors in their places.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Call = Callable[[], tuple[Tensor, Tensor]]

_NUM_WARM_UP_CALLS = (
    5  # TorchScript profiles the first of each size, compiles on the second; some more to settle
)


def pick_device(wanted: str) -> torch.device:
    """Returns the device that `auto`, `cpu` or `cuda` means on this machine.

    Raises:
        RuntimeError: CUDA is asked for and not there.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("CUDA is not available on this machine")
    return torch.device(wanted)


def reason_of(error: BaseException) -> str:
    """Returns in one line why something failed on CUDA.

    That is what failed first: a capture that is broken off fails once more as it ends. A script's error is
    a traceback, CUDA's has advice after it; one line of either tells what it is about.
    """
    while error.__context__ is not None:
        error = error.__context__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "error: " in line.lower()]
    return next(iter(telling + lines), type(error).__name__)


class Graphs:
    """Records calls as CUDA graphs, which replay with one launch each.

    All share one pool of memory: a replay may overwrite the results of the others, so replay one, take its
    results, then replay the next.
    """

    pins = True
    """Host memory is to be pinned: a copy from there does not go by way of another."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._memory = torch.cuda.graph_pool_handle()
        self._graphs: list[torch.cuda.CUDAGraph] = []

    def record(self, call: Call) -> Call:
        """Returns the call as a graph, whose results lie in the same places each time.

        Calls it a few times first: what it does only once, like compiling, cannot be recorded.

        Raises:
            RuntimeError: it cannot be recorded, as where it waits for the device; or it fails by itself.
        """
        graph = torch.cuda.CUDAGraph()
        self._graphs.append(graph)  # even where it fails: torch's allocator goes on asking it
        self._stream.wait_stream(torch.cuda.current_stream())
        # Around all, because torch.cuda.graph leaves its stream the current one where a recording fails.
        with torch.cuda.stream(self._stream):
            for _ in range(_NUM_WARM_UP_CALLS):
                call()
            # Other threads may serve meanwhile: what they ask of CUDA is no fault of this recording.
            with torch.cuda.graph(
                graph, pool=self._memory, stream=self._stream, capture_error_mode="thread_local"
            ):
                results = call()

        def replay() -> tuple[Tensor, Tensor]:
            graph.replay()
            return results

        return replay

    def wait(self) -> None:
        """Returns when the device has done all that it was told."""
        torch.cuda.current_stream().synchronize()
