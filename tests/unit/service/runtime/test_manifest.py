"""The manifest: every entry is read, and every damage is named."""

import json

import pytest

from service.runtime import manifest
from service.runtime.manifest import ManifestError, StateField, Variable
from tests.fakes import manifest_of

LAYOUT = manifest_of()["state"]["layout"]


def parse(**changes):
    """Parses the Recurrence's manifest with changes."""
    return manifest.parse(json.dumps(manifest_of(**changes)))


def test_a_manifest_reads_as_it_was_written():
    """Every entry is read, nulls as the API's defaults; the text is kept as a whole."""
    text = json.dumps(manifest_of(uses_time=True, step_interval_seconds=1800.0, future=[{"name": "holiday"}]))
    about = manifest.parse(text)
    assert (about.name, about.version, about.description) == (
        "recurrence", "1", "Two numbers in, two numbers out.",
    )  # fmt: skip
    assert about.inputs == (Variable("flow", "l/s"), Variable("valve"))
    assert about.outputs == (
        Variable("level", "l/s", "flow", "mean", 0.0),
        Variable("high", "l/s", "flow", "quantile", 0.9),
    )
    assert about.future == (Variable("holiday"),)
    assert about.state_size == 3
    assert about.state_layout[1] == StateField("trend", 1, 1)
    assert about.uses_time is True
    assert about.step_interval_ns == 1800 * 10**9
    assert about.text == text


def test_no_interval_is_zero():
    """A series without a fixed interval has 0 ns."""
    assert parse(step_interval_seconds=0).step_interval_ns == 0


@pytest.mark.parametrize(
    "key",
    ["name", "version", "inputs", "outputs", "future", "state", "uses_time", "step_interval_seconds"],
)
def test_a_missing_part_is_named(key):
    """A manifest without a required entry is refused, with the entry's name."""
    whole = manifest_of()
    del whole[key]
    with pytest.raises(ManifestError, match=f"'{key}' is missing"):
        manifest.parse(json.dumps(whole))


def test_an_optional_part_may_be_missing():
    """A manifest may have no description, attribution and training."""
    whole = manifest_of()
    del whole["description"], whole["training"]
    assert manifest.parse(json.dumps(whole)).description == ""


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[1, 2]", "not a JSON object"),
        ("null", "not a JSON object"),
        ("{}", "format_version is None; this server reads 1"),
    ],
)
def test_text_that_is_no_manifest(text, problem):
    """Text other than a JSON object with a format version is refused."""
    with pytest.raises(ManifestError, match=problem):
        manifest.parse(text)


@pytest.mark.parametrize("found", [2, 0, "1", None])
def test_another_format_version_is_refused(found):
    """The error for an unknown format version problem what to do."""
    with pytest.raises(ManifestError, match=f"format_version is {found!r}; .*: export it again"):
        parse(format_version=found)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"inputs": []}, "no inputs or no outputs"),
        ({"outputs": []}, "no inputs or no outputs"),
        ({"inputs": None}, "damaged"),
        ({"inputs": ["flow"]}, "damaged"),
        ({"inputs": [7]}, "damaged"),
        ({"inputs": [{"unit": "m"}]}, "'name' is missing"),
        ({"outputs": [{"name": "a", "quantile": "high"}]}, "damaged.*'high'"),
        ({"inputs": [{"name": "a"}, {"name": "a"}]}, "one of its inputs twice"),
        ({"outputs": [{"name": "a"}, {"name": "a"}]}, "one of its outputs twice"),
        ({"future": [{"name": "a"}, {"name": "a"}]}, "one of its future twice"),
        ({"step_interval_seconds": -1}, "step_interval_seconds is negative"),
        ({"step_interval_seconds": "hourly"}, "damaged.*'hourly'"),
        ({"state": []}, "damaged"),
        ({"state": {"layout": LAYOUT}}, "'size' is missing"),
        ({"state": {"size": 3}}, "'layout' is missing"),
        ({"state": {"size": "wide", "layout": LAYOUT}}, "damaged.*'wide'"),
        ({"state": {"size": 3, "layout": ["h", "c"]}}, "damaged"),
        ({"state": {"size": 4, "layout": LAYOUT}}, "the state fields cover 3 values of 4"),
        ({"state": {"size": 2, "layout": LAYOUT}}, "the state fields cover 3 values of 2"),
        ({"state": {"size": 3, "layout": LAYOUT[1:]}}, "'trend' does not begin where the one before it ends"),
        ({"state": {"size": 3, "layout": [LAYOUT[1], LAYOUT[0], LAYOUT[2]]}}, "'trend' does not begin"),
        ({"state": {"size": 2, "layout": [LAYOUT[0] | {"size": 0}]}}, "'level' does not begin"),
        ({"state": {"size": 3, "layout": [*LAYOUT[:2], {"offset": 2, "size": 1}]}}, "'name' is missing"),
    ],
)
def test_damage_is_named_in_one_line(changes, problem):
    """An entry that is wrong, or contradicts another, is refused in one line that names the entry."""
    with pytest.raises(ManifestError, match=problem) as caught:
        parse(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"step_interval_seconds": float("nan")},
        {"step_interval_seconds": float("inf")},
        {"step_interval_seconds": 1e300},
        {"state": {"size": float("inf"), "layout": []}},
        {"uses_time": "false"},
        {"state": {"size": 3.7, "layout": [{"name": "a", "offset": 0, "size": 3.2}]}},
    ],
    ids=str,
)
def test_numbers_out_of_range_are_damage(changes):
    """Numbers that are not finite or not whole, and texts for booleans, are refused."""
    with pytest.raises(ManifestError):
        parse(**changes)


@pytest.mark.parametrize("place", ["name", "description", "inputs", "state"])
def test_a_text_that_no_message_can_carry_is_refused(place):
    """JSON takes half of a surrogate pair; the messages that show the model cannot be made of it."""
    changes = {
        "name": "\ud800",
        "description": "a \ud800 model",
        "inputs": [{"name": "flow", "unit": "\udc00"}],
        "state": {"size": 1, "layout": [{"name": "\ud800", "offset": 0, "size": 1}]},
    }
    with pytest.raises(ManifestError, match="is not Unicode text") as caught:
        parse(**{place: changes[place]})
    assert str(caught.value).isascii()


def test_a_text_that_nests_too_deep_is_refused():
    """The reader of JSON gives up on it in another way than on other texts."""
    with pytest.raises(ManifestError, match="is not JSON"):
        manifest.parse('{"name": ' + "[" * 100_000)


def test_a_state_beyond_every_snapshot_is_refused():
    """No memory has room for such a row, and no message for its size."""
    size = (1 << 28) + 1
    state = {"size": size, "layout": [{"name": "level", "offset": 0, "size": size}]}
    with pytest.raises(ManifestError, match="more than 268435456"):
        parse(state=state)
