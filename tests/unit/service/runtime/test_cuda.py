"""CUDA where there is none: the choice of a device, one-line reasons, the fallback to the CPU."""

import logging

import pytest
import torch

from service.config import Address, Config
from service.errors import ConfigError
from service.runtime import artifact, cuda
from service.runtime.cuda import pick_device, reason_of
from service.server import Server
from tests import fakes

OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB."


def test_devices():
    """`auto` takes CUDA if it is available; `cuda` is an error if it is not."""
    assert pick_device("cpu").type == "cpu"
    there = torch.cuda.is_available()
    assert pick_device("auto").type == ("cuda" if there else "cpu")
    if there:
        assert pick_device("cuda").type == "cuda"
    else:
        with pytest.raises(RuntimeError, match="CUDA is not available"):
            pick_device("cuda")


class TestReasons:
    """The one-line reason of an error."""

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            (f"{OUT_OF_MEMORY}\nSee documentation.", OUT_OF_MEMORY),
            ("CUDA error: illegal memory access\nCompile with DSA.", "CUDA error: illegal memory access"),
            ("It failed.\n\n  File x\nRuntimeError: CUDA error: no\nHint.", "RuntimeError: CUDA error: no"),
            ("", "RuntimeError"),
        ],
    )  # fmt: skip
    def test_a_reason_is_one_line(self, text, reason):
        """The reason is the one line of torch's text that names the error."""
        assert reason_of(RuntimeError(text)) == reason

    def test_a_reason_is_what_failed_first(self):
        """The reason is the first error, not one that followed from it."""
        with pytest.raises(RuntimeError, match="previous") as caught:  # noqa: PT012
            try:
                raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
            except RuntimeError:
                raise RuntimeError("CUDA error: failed due to a previous error") from None
        assert reason_of(caught.value) == "CUDA error: operation not permitted when stream is capturing"


@pytest.fixture
def settings(tmp_path):
    """Returns the settings for two models and a device."""
    for name in ("a", "b"):
        fakes.save(tmp_path / name / "1" / "model.pt")
    anywhere = Address("127.0.0.1", 0)
    return lambda device: Config(
        models=tmp_path, device=device, listen=anywhere, metrics_listen=anywhere, max_batch_steps=4
    )


@pytest.fixture
def cuda_errors(monkeypatch):
    """CUDA seems available and fails on the second model with the last of these errors."""
    errors = [torch.OutOfMemoryError(OUT_OF_MEMORY)]
    real = artifact.load

    def load(name, version, path, device, **given):
        if device.type == "cuda" and name == "b":
            raise errors[-1]
        return real(name, version, path, torch.device("cpu"), **given)

    monkeypatch.setattr(artifact, "load", load)
    monkeypatch.setattr(
        cuda, "pick_device", lambda wanted: torch.device("cpu" if wanted == "cpu" else "cuda")
    )
    return errors


class TestServer:
    """A server whose models fail on CUDA."""

    async def test_auto_falls_back_to_the_cpu(self, settings, cuda_errors, caplog):
        """One line says why and what follows; then every model is served from the CPU."""
        with caplog.at_level(logging.INFO):
            server = Server(settings("auto"))
        warnings = [line for line in caplog.records if line.levelname == "WARNING"]
        assert [line.message for line in warnings] == ["cuda_unusable"]
        assert warnings[0].fields == {"why": OUT_OF_MEMORY, "effect": "serving on the CPU"}
        after = caplog.records[caplog.records.index(warnings[0]) + 1 :]
        loaded = [(line.message, line.fields["model"], line.fields["device"]) for line in after]
        assert loaded == [("model_loaded", "a/1", "cpu"), ("model_loaded", "b/1", "cpu")]
        assert [engine.name for engine in server.catalog.versions.engines] == ["a", "b"]

    @pytest.mark.parametrize(
        ("error", "why"),
        [
            (torch.OutOfMemoryError(OUT_OF_MEMORY), OUT_OF_MEMORY),
            (ConfigError("b/1/model.pt: not readable"), "b/1/model.pt: not readable"),
        ],
    )
    async def test_cuda_that_was_asked_for_must_work(self, settings, cuda_errors, error, why):
        """The error names the flag and the reason."""
        cuda_errors.append(error)
        with pytest.raises(ConfigError) as caught:
            Server(settings("cuda"))
        assert str(caught.value) == f"--device: cannot serve on CUDA: {why}"

    async def test_a_refusal_quotes_the_first_error(self, settings, cuda_errors):
        """The error has CUDA's first line, beside the last line that the model's error quotes."""
        try:
            try:
                raise RuntimeError("CUDA error: no kernel image is available\nCompile with DSA.")
            except RuntimeError:
                raise ConfigError("b/1/model.pt: the script fails (Compile with DSA.)") from None
        except ConfigError as error:
            cuda_errors.append(error)
        with pytest.raises(
            ConfigError, match=r"the script fails .*: CUDA error: no kernel image is available$"
        ):
            Server(settings("cuda"))

    async def test_a_cpu_that_was_asked_for_has_no_warning(self, settings, caplog):
        """The lines of the models say the device, and there is no warning."""
        with caplog.at_level(logging.INFO):
            Server(settings("cpu"))
        assert [line.levelname for line in caplog.records] == ["INFO", "INFO"]
        assert {line.fields["device"] for line in caplog.records} == {"cpu"}
