"""The export command: reference networks, checkpoints and older artifacts."""

import torch

from model.artifact import load_artifact


class TestReference:
    """The network for benchmarks."""

    def test_reference_is_seeded_and_bare(self, command, tmp_path):
        """The same seed gives the same weights; the state is h and c alone, without scaling or time."""
        for name, seed in (("a", 0), ("b", 0), ("c", 1)):
            arguments = ("--inputs", 8, "--hidden", 128, "--layers", 1, "--seed", seed)
            status, out, _ = command("export", "--reference", *arguments, "--out", tmp_path / name)
            assert status == 0
            assert "reference 1" in out
        first, second, other = (load_artifact(tmp_path / name) for name in "abc")
        assert first.manifest == second.manifest
        assert first.manifest.state_size == 256
        assert not first.manifest.uses_time
        x = torch.randn(4, 8)
        y, state = first.script.step(x, torch.zeros(4, dtype=torch.int64), first.zero_state(4))
        assert y.shape == (4, 1)
        assert torch.equal(
            y, second.script.step(x, torch.zeros(4, dtype=torch.int64), first.zero_state(4))[0]
        )
        assert not torch.equal(
            y, other.script.step(x, torch.zeros(4, dtype=torch.int64), first.zero_state(4))[0]
        )
        forecast = first.script.forecast(state, torch.zeros(4, dtype=torch.int64), 5, torch.zeros(4, 5, 0))
        assert forecast.shape == (4, 5, 1)

    def test_impossible_references_are_refused(self, refused, tmp_path):
        """A hidden size that is not a multiple of 16 and a network without inputs are refused."""
        out = tmp_path / "model.pt"
        assert "multiple of 16" in refused("export", "--reference", "--hidden", 100, "--out", out)
        assert "inputs" in refused("export", "--reference", "--inputs", 0, "--out", out)
        assert not out.exists()


class TestFromTraining:
    """Checkpoints and older artifacts."""

    def test_exports_a_checkpoint(self, command, refused, tiny_csv, tiny, tmp_path):
        """The checkpoint of a finished training gives its artifact again; a damaged checkpoint is refused."""
        status, _, _ = command("train", "--csv", tiny_csv, "--out", tmp_path / "out", *tiny)
        assert status == 0
        folder = tmp_path / "out" / "tiny" / "1"
        status, _, _ = command(
            "export", "--checkpoint", folder / "checkpoint.pt", "--out", tmp_path / "again.pt"
        )
        assert status == 0
        trained, exported = load_artifact(folder / "model.pt"), load_artifact(tmp_path / "again.pt")
        theirs = exported.script.state_dict()
        for name, weight in trained.script.state_dict().items():
            assert torch.equal(weight, theirs[name])
        assert exported.manifest.training["command"] == trained.manifest.training["command"]
        (folder / "checkpoint.pt").write_bytes(b"no checkpoint")
        assert "not a checkpoint" in refused(
            "export", "--checkpoint", folder / "checkpoint.pt", "--out", tmp_path / "x"
        )
        assert "no such checkpoint" in refused(
            "export", "--checkpoint", tmp_path / "none", "--out", tmp_path / "x"
        )

    def test_scripts_an_older_artifact_again(self, command, refused, tiny_csv, tiny, tmp_path):
        """An artifact's weights and manifest get this version's script; it must say its architecture."""
        assert command("train", "--csv", tiny_csv, "--out", tmp_path / "out", *tiny)[0] == 0
        trained = tmp_path / "out" / "tiny" / "1" / "model.pt"
        assert command("export", "--artifact", trained, "--out", tmp_path / "again.pt")[0] == 0
        old, new = load_artifact(trained), load_artifact(tmp_path / "again.pt")
        assert new.manifest == old.manifest
        theirs = new.script.state_dict()
        assert all(torch.equal(weight, theirs[name]) for name, weight in old.script.state_dict().items())
        bare = tmp_path / "bare.pt"
        assert command("export", "--reference", "--hidden", 16, "--out", bare)[0] == 0
        assert "architecture" in refused("export", "--artifact", bare, "--out", tmp_path / "x")
