"""The manifest as JSON."""

import json

import pytest

from model.errors import ArtifactError
from model.export import reference
from model.manifest import Manifest, layout_of


@pytest.fixture
def manifest() -> Manifest:
    """Returns the reference artifact's manifest."""
    return reference(num_inputs=8, hidden_size=128, num_layers=1, seed=0)[1]


class TestContent:
    """What a manifest holds."""

    def test_has_the_fields_of_the_contract(self, manifest):
        """The JSON has every field of format version 1, and the layout covers the state without a gap."""
        fields = json.loads(manifest.to_json())
        assert fields["format_version"] == 1
        assert set(fields) == {
            *(
                "format_version",
                "name",
                "version",
                "description",
                "attribution",
                "inputs",
                "outputs",
                "future",
            ),
            *("state", "uses_time", "step_interval_seconds", "training"),
        }
        assert fields["inputs"][0] == {"name": "input_0", "unit": ""}
        assert set(fields["outputs"][0]) == {"name", "target", "role", "quantile", "unit", "horizon_steps"}
        assert fields["state"] == {
            "size": 256,
            "layout": [
                {"name": "layers.0.h", "offset": 0, "size": 128},
                {"name": "layers.0.c", "offset": 128, "size": 128},
            ],
        }

    def test_reads_back_what_it_wrote(self, manifest):
        """A manifest that was written as JSON and read back is the same."""
        assert Manifest.from_json(manifest.to_json()) == manifest
        assert Manifest.from_json(manifest.to_json().encode()) == manifest

    def test_layout_is_contiguous(self):
        """Parts are placed one after the other, in order."""
        assert [(part.offset, part.size) for part in layout_of([("h", 3), ("c", 3), ("last_x", 2)])] == [
            (0, 3),
            (3, 3),
            (6, 2),
        ]


class TestRefusals:
    """Text that is no manifest."""

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"format_version": 2}, "format_version 2 is not 1"),
            ({"format_version": None}, "format_version None is not 1"),
            (
                {"state": {"size": 256, "layout": [{"name": "h", "offset": 1, "size": 255}]}},
                "starts at 1, not at 0",
            ),
            (
                {"state": {"size": 9, "layout": [{"name": "h", "offset": 0, "size": 8}]}},
                "size is 9, its layout's 8",
            ),
            ({"inputs": [{"title": "x"}]}, "malformed"),
            ({"outputs": None}, "malformed"),
            ({"surprise": 1}, "malformed"),
        ],
    )
    def test_wrong_manifests_are_refused(self, manifest, change, said):
        """A wrong field is refused, and the message names the fault."""
        fields = {**json.loads(manifest.to_json()), **change}
        with pytest.raises(ArtifactError, match=said):
            Manifest.from_json(json.dumps(fields))

    @pytest.mark.parametrize("text", ["", "{", "[]", "7"])
    def test_no_json_object_is_refused(self, text):
        """Text that is not a JSON object is refused."""
        with pytest.raises(ArtifactError, match="JSON"):
            Manifest.from_json(text)
