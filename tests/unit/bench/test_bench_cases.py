"""The cases: their loads, their order and windows; cores; the figures of a load; a GPU's batches."""

import pathlib

import pytest
import torch

from bench import cuda
from bench.cases import (
    CASES,
    CELL_AFTER,
    CELL_LABELS,
    ENGINE_LABELS,
    ENVOY_CASES,
    FLOORS,
    INFER,
    LOADTEST,
    RAW,
    RESIDENT,
    labels,
)
from bench.errors import BenchError
from bench.figures import summarise
from bench.loads import check, figures_of
from bench.processes import Cores
from bench.servers import ECHO
from loadtest.options import parse
from tests.unit.bench.canned import LENGTHS, one_round

ROOT = pathlib.Path(__file__).parents[3]
BY_NAME = {case.name: case for case in CASES}
RESULT = {
    "options": {"rate": 0.0},
    "seconds": 2.0,
    "steps": 10,
    "steps_per_second": 5.0,
    "sent_steps_per_second": 6.0,
    "latency_seconds": {"p50": 0.1, "p99": 0.2, "p99.9": 0.3},
    "server": {"cpu_us_per_step": 8.0, "cpu_seconds": 0.5, "num_steps": 20},
    "generator_core_share": 0.1,
    "errors": {},
}


class TestLoads:
    """The load of each case."""

    @pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
    def test_every_load_is_one_that_loadtest_takes(self, case):
        """Its options parse."""
        options = parse(["--target", "a:1", *LENGTHS.window(case), *case.arguments()])
        assert (options.mode, options.streams, options.rate) == (case.mode, case.streams, case.rate)

    def test_every_case_has_a_label_and_only_one(self):
        """What is measured is what is shown."""
        assert set(labels()) == {*BY_NAME, *CELL_LABELS, *ENGINE_LABELS, RESIDENT}
        assert len(set(labels().values())) == len(labels())

    def test_window_is_the_plans_unless_the_case_sets_one(self):
        """The window is the plan's, or the case's own, or ends by count and has no warm-up."""
        assert LENGTHS.window(BY_NAME["stream_64"]) == ["--seconds", "2.0", "--warm-up", "0.5"]
        assert LENGTHS.window(BY_NAME["open_2000"])[:2] == ["--seconds", "5.0"]
        assert LENGTHS.window(BY_NAME["prime_10000"])[:2] == ["--max-steps", "30000"]

    def test_priming_fits_into_the_queue(self):
        """With the messages of eight clients at once, beside the single steps, no step is refused."""
        priming = BY_NAME["primed_4"].background
        assert priming.streams == 8
        assert priming.streams * priming.frame_steps < 262_144 - 1000

    def test_raw_generator_sends_what_loadtest_could_not(self):
        """It sends single steps, one at a time on a stream, and it loads every echo."""
        raw = [case for case in CASES if case.module in (RAW, INFER)]
        assert {case.mode for case in raw} == {"stream", "unary"}
        assert all(case.in_flight == 0 for case in raw)
        assert all(case.module == RAW for case in CASES if case.name in FLOORS)
        assert all(case.module in (RAW, INFER, LOADTEST) for case in CASES)


class TestComparison:
    """Cases that are compared have the same load, close in time."""

    @pytest.mark.parametrize("case", [case for case in CASES if case.rate_of], ids=lambda case: case.name)
    def test_a_rate_follows_from_a_case_measured_before(self, case):
        """The earlier case is measured in the same round."""
        names = list(BY_NAME)
        assert names.index(case.rate_of) < names.index(case.name)
        options = parse(["--target", "a:1", *case.arguments(case.rate_share * 1000.0)])
        assert options.rate == case.rate_share * 1000

    def test_cases_that_are_compared_stand_side_by_side(self):
        """So that a noisy moment meets both. The cell follows the frames that are compared with it."""
        names = list(BY_NAME)
        pairs = [
            ("echo_stream_64", "stream_64"), ("half_64", "echo_half_64"), ("echo_unary_64", "unary_64"),
            ("stream_1", "prime_10000"), ("idle_4", "primed_4"), ("frame_256", "overload"),
            ("stream_64", "infer_64"), ("infer_64", "envoy_infer_64"), ("envoy_infer_64", "envoy_stream_64"),
            ("envoy_stream_64", "envoy_echo_stream_64"),
            ("unary_64", "envoy_unary_64"), ("envoy_unary_64", "envoy_echo_unary_64"),
            ("echo_stream_256", "envoy_stream_256"), ("envoy_stream_256", "stream_256"),
            ("half_256", "envoy_half_256"), ("envoy_frame_256", "frame_256"),
        ]  # fmt: skip
        assert all(names.index(after) - names.index(before) == 1 for before, after in pairs)
        near = [("stored_stream_64", "stream_64"), ("stored_frame_256", "frame_256")]
        assert all(names.index(after) - names.index(before) == 2 for before, after in near)
        assert CELL_AFTER == "frame_256"

    def test_half_load_is_the_same_on_the_echo(self):
        """Only the server differs."""
        service, echo = BY_NAME["half_64"], BY_NAME["echo_half_64"]
        assert echo.server == ECHO
        assert service.arguments(100.0) == echo.arguments(100.0)

    @pytest.mark.parametrize("name", sorted(ENVOY_CASES))
    def test_every_case_of_the_envoy_front_has_a_counterpart_on_grpcio(self, name):
        """The same load, from the same generator."""
        here, there = BY_NAME[name], BY_NAME[name.removeprefix("envoy_")]
        assert here.arguments(100.0) == there.arguments(100.0)
        assert (here.module, here.rate_of, here.rate_share) == (there.module, there.rate_of, there.rate_share)
        assert here.server != there.server


class TestFigures:
    """What the benchmark uses of the result of a load."""

    def test_a_system_without_peak_memory_leaves_it_out(self):
        """The figure is missing, and not zero."""
        summary = summarise([one_round(stream_1=figures_of(RESULT, None))])
        assert "peak_memory_bytes" not in summary.cases["stream_1"]
        assert "asked_steps_per_second" not in summary.cases["stream_1"]
        assert summary.cases["stream_1"]["p99_9_seconds"].median == 0.3
        assert summary.cases["stream_1"]["server_core_share"].median == 0.25
        assert summary.cases["stream_1"]["steps_per_core_second"].median == 125_000
        assert summary.cases["stream_1"]["server_steps_per_second"].median == 10

    def test_refusals_are_counted_where_the_server_is_overloaded(self):
        """That case is there for refusals. Elsewhere, and for any other reason, the benchmark stops."""
        refused = RESULT | {"errors": {"OVERLOADED": 4}}
        check(BY_NAME["overload"], refused)
        assert figures_of(refused, None)["num_refused"] == 4
        for case, result, named in (
            ("stream_64", refused, "messages failed: {'OVERLOADED': 4}"),
            ("overload", RESULT | {"errors": {"INTERNAL": 1, "OVERLOADED": 4}}, "INTERNAL"),
            ("stream_64", RESULT | {"steps": 0}, "no step was answered"),
        ):
            with pytest.raises(BenchError, match=named):
                check(BY_NAME[case], result)


class TestGpu:
    """The batches of a GPU, and their floor."""

    def test_batches_of_a_gpu_can_be_measured_on_the_cpu(self):
        """The figures are those of every batch, in order, and all are above zero."""
        path = next((ROOT / "model" / "artifacts" / "mackey-glass").rglob("model.pt"))
        found = cuda.measure(str(path), 0.0, torch.device("cpu"), (1, 4))
        assert [each["batch"] for each in found["batches"]] == [1, 4]
        assert all(value > 0 for each in found["batches"] for value in each.values())
        assert found["copy_bytes_per_second"] > 0

    def test_floor_on_a_gpu_moves_rows_twice_and_weights_once(self):
        """A million bytes at a million bytes a second take one second."""
        assert cuda.floor_seconds(400, 1000, 200_000, 1e6) == 1.0
        assert (cuda.BATCHES[0], cuda.BATCHES[-1]) == (1, 65_536)


class TestCores:
    """Which core has the server."""

    @pytest.mark.parametrize(
        ("found", "server", "generators", "num_generators", "said"),
        [
            ((), (), (), 1, "not pinned: fewer than two cores"),
            ((3,), (), (), 1, "not pinned: fewer than two cores"),
            ((0, 1), (0,), (1,), 1, "server on core 0, generator on core 1"),
            ((0, 2, 3), (0,), (2, 3), 2, "server on core 0, generators on cores 2 to 3"),
            (tuple(range(16)), (0,), tuple(range(1, 16)), 4, "server on core 0, generators on cores 1 to 15"),
        ],
    )
    def test_the_server_has_a_core_and_the_generators_have_the_others(
        self, found, server, generators, num_generators, said
    ):
        """Each generator core has a process, up to four."""
        cores = Cores(found)
        assert (cores.server, cores.generators, cores.num_generators) == (server, generators, num_generators)
        assert str(cores) == said
