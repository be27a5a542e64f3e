"""The methods that describe the server and its models."""

import json

import numpy as np
import pytest
from streamcell.inference import open_inference_pb2 as pb

from tests.fakes import Served, recurrence, renamed
from tests.inference import SERVICE, infer

X = np.ones((40, 2), np.float32)


@pytest.fixture
async def served():
    """Two versions of a model, and another that uses time."""
    timed = renamed(recurrence(uses_time=True), "timed", "1")
    return Served(renamed(recurrence(), "flow", "1"), renamed(recurrence(), "flow", "10"), timed)


async def ask(served, method, /, **fields):
    """Returns a method's response."""
    return await served.ask(f"{SERVICE}/{method}", getattr(pb, f"{method}Request")(**fields))


class TestHealth:
    """Live and ready."""

    async def test_readiness_follows_the_drain(self, served):
        """A server that drains is live and not ready, and neither are its models."""
        for is_ready in (True, False):
            served.catalog.is_draining = not is_ready
            assert (await ask(served, "ServerLive")).live
            assert (await ask(served, "ServerReady")).ready is is_ready
            assert (await ask(served, "ModelReady", name="flow")).ready is is_ready
            assert (await ask(served, "ModelReady", name="flow", version="10")).ready is is_ready
            index = (await ask(served, "RepositoryIndex")).models
            assert {each.state for each in index} == {"READY" if is_ready else "UNAVAILABLE"}
            assert len((await ask(served, "RepositoryIndex", ready=True)).models) == (3 if is_ready else 0)

    async def test_a_server_that_wants_no_new_clients_is_not_ready_and_serves(self, served):
        """Before it is ready and as a lame duck: the index says why, and requests are answered."""
        served.catalog.why_not_ready = "not yet"
        assert not (await ask(served, "ServerReady")).ready
        assert not (await ask(served, "ModelReady", name="flow")).ready
        index = (await ask(served, "RepositoryIndex")).models
        assert {(each.state, each.reason) for each in index} == {("UNAVAILABLE", "not yet")}
        found = await served.ask(f"{SERVICE}/ModelInfer", infer(X[:1], "flow"))
        assert found.outputs

    @pytest.mark.parametrize("fields", [{"name": "none"}, {"name": "flow", "version": "2"}, {}])
    async def test_a_model_that_is_not_served_is_not_ready(self, served, fields):
        """The answer is that it is not ready, not an error."""
        assert not (await ask(served, "ModelReady", **fields)).ready


class TestMetadata:
    """Server, models, tensors, configuration, index."""

    async def test_the_server_lists_its_extensions(self, served):
        """Sequences by number and text, statistics, the index of the repository."""
        found = await ask(served, "ServerMetadata")
        assert found.name == "streamcell"
        assert set(found.extensions) >= {
            "sequence", "sequence(string_id)", "statistics", "model_repository",
        }  # fmt: skip

    async def test_the_index_lists_models_in_order(self, served):
        """By name, then version, as numbers."""
        models = (await ask(served, "RepositoryIndex")).models
        assert [(each.name, each.version) for each in models] == [
            ("flow", "1"),
            ("flow", "10"),
            ("timed", "1"),
        ]

    async def test_metadata_names_tensors_and_their_columns(self, served):
        """The batch is first, the last dimension has names; only a model that uses time has `time`."""
        found = await ask(served, "ModelMetadata", name="flow")
        assert (found.name, list(found.versions), found.platform) == (
            "flow",
            ["1", "10"],
            "pytorch_torchscript",
        )
        (x,), (y,) = found.inputs, found.outputs
        assert (x.name, x.datatype, list(x.shape)) == ("x", "FP32", [-1, 2])
        assert (y.name, y.datatype, list(y.shape)) == ("y", "FP32", [-1, 2])
        assert json.loads(found.properties["x"]) == ["flow", "valve"]
        assert json.loads(found.properties["y"]) == ["level", "high"]
        one = await ask(served, "ModelMetadata", name="flow", version="1")
        assert list(one.versions) == ["1"]
        timed = await ask(served, "ModelMetadata", name="timed")
        assert [(each.name, each.datatype) for each in timed.inputs] == [("x", "FP32"), ("time", "INT64")]
        assert timed.properties["uses_time"] == "true"

    async def test_the_configuration_has_sequence_batching(self, served):
        """A batch of one, dimensions without it, time optional, sequences that may idle."""
        config = (await ask(served, "ModelConfig", name="timed")).config
        assert (config.name, config.max_batch_size, config.backend) == ("timed", 1, "pytorch")
        assert [(each.name, each.data_type, list(each.dims), each.optional) for each in config.input] == [
            ("x", pb.TYPE_FP32, [2], False),
            ("time", pb.TYPE_INT64, [1], True),
        ]
        assert [(each.name, list(each.dims)) for each in config.output] == [("y", [2])]
        assert config.WhichOneof("scheduling_choice") == "sequence_batching"
        assert config.sequence_batching.max_sequence_idle_microseconds == 3_600_000_000
        assert config.sequence_batching.oldest.max_candidate_sequences == 64

    async def test_sequences_that_never_expire_have_the_largest_idle_time(self):
        """The largest number stands for no limit: clients take 0 for a default of their own."""
        config = (await ask(Served(session_ttl_seconds=0), "ModelConfig", name="recurrence")).config
        assert config.sequence_batching.max_sequence_idle_microseconds == (1 << 63) - 1

    @pytest.mark.parametrize("method", ["ModelMetadata", "ModelConfig", "ModelStatistics"])
    async def test_unknown_models_are_not_found(self, served, method):
        """The error lists the models that are served."""
        request = getattr(pb, f"{method}Request")(name="none")
        refusal = await served.refused(f"{SERVICE}/{method}", request)
        assert (refusal.code, refusal.reason) == (5, "MODEL_NOT_FOUND")
        assert "flow/10" in refusal.message

    @pytest.mark.parametrize("method", ["ModelMetadata", "ModelConfig"])
    async def test_a_model_must_be_named(self, served, method):
        """The error names the field."""
        refusal = await served.refused(f"{SERVICE}/{method}", getattr(pb, f"{method}Request")())
        assert (refusal.code, refusal.metadata["field"]) == (3, "name")


class TestStatistics:
    """ModelStatistics."""

    async def test_statistics_are_those_of_prometheus(self, served):
        """They agree to the count, for single steps, several, repeats and refusals."""
        method = f"{SERVICE}/ModelInfer"
        await served.ask(method, infer(X[:1], "flow", sequence_id=7, sequence_start=True, step_index=0))
        await served.ask(method, infer(X[:1], "flow", sequence_id=7, step_index=0))  # a repeat
        await served.ask(method, infer(X[None, :9], "flow", sequence_id=7))
        for bad in (
            infer([[1.0]], "flow"),
            infer(X[:1], "flow", sequence_id=8),
            infer([[[3e38, 1]] * 9], "flow"),
        ):
            await served.refused(method, bad)
        (found,) = (await ask(served, "ModelStatistics", name="flow", version="10")).model_stats
        labels = {"model": "flow", "version": "10"}

        def sample(name):
            return served.metrics.registry.get_sample_value(f"streamcell_{name}", labels)

        stats = found.inference_stats
        assert found.inference_count == sample("steps_total") >= 10
        assert found.execution_count == sample("batch_steps_count")
        assert stats.success.count == sample("step_seconds_count") == 10
        assert stats.queue.count == sample("step_queue_seconds_count")
        assert stats.compute_infer.count == sample("step_compute_seconds_count")
        assert stats.fail.count == sample("inference_failed_seconds_count") == 3
        assert stats.cache_hit.count == sample("repeated_steps_total") == 1
        for statistic, instrument in (
            (stats.success, "step"),
            (stats.queue, "step_queue"),
            (stats.fail, "inference_failed"),
        ):
            assert statistic.ns == round(sample(f"{instrument}_seconds_sum") * 1e9)

    async def test_statistics_of_all_models(self, served):
        """Without a name all models are listed; a model that never ran has zeros."""
        found = (await ask(served, "ModelStatistics")).model_stats
        assert [(each.name, each.version) for each in found] == [
            ("flow", "1"),
            ("flow", "10"),
            ("timed", "1"),
        ]
        assert [(each.inference_count, each.last_inference) for each in found] == [(0, 0)] * 3
        await served.ask(f"{SERVICE}/ModelInfer", infer(X[:1], "flow"))
        found = (await ask(served, "ModelStatistics", name="flow")).model_stats
        assert [each.inference_count for each in found] == [0, 1]
        assert found[1].last_inference > 1_700_000_000_000  # milliseconds, of this century's clock
