"""Manifests: a text is refused in words, or every message that shows the model can be made of it."""

import json
import types

from service.engine import snapshot
from service.runtime import manifest
from service.runtime.manifest import ManifestError
from service.servicers.inference import metadata
from service.servicers.streamcell import convert
from tests.fakes import manifest_of
from tests.fuzz import mutations

PARTS = [*map(json.dumps, [*mutations.WHOLE, "x", "\ud800", "", "a/b", [], {}, None, True, 0.5, 1e308])]
PARTS += [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "\\ud800",
    '"name"',
    '"size"',
    '"offset"',
    "[" * 20,
    "[" * 2000,
    ",",
    ":",
]


def run(raw):
    """Parses a text, and shows the model as the methods of both APIs do."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return
    try:
        about = manifest.parse(text)
    except ManifestError:
        return
    assert about.step_interval_ns >= 0
    assert len(snapshot.layout_of(about)) == snapshot.DIGEST_BYTES
    succession = types.SimpleNamespace(is_retiring=False)
    sessions = types.SimpleNamespace(num_of=lambda account: 0)
    engine = types.SimpleNamespace(
        name="m", version="1", manifest=about, sessions=sessions, succession=succession, settings=None
    )
    shown = convert.model_message(engine, 0)
    assert type(shown).FromString(shown.SerializeToString()) == shown
    for text in metadata._properties(engine).values():
        text.encode()


def mutate(raw, chance):
    """Changes the text, or one value of the JSON object."""
    text = raw.decode(errors="replace")
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        whole = None
    if not whole or not isinstance(whole, dict) or chance.random() < 0.3:
        return mutations.of_text(text, chance, PARTS).encode(errors="replace")
    place = whole
    while True:
        key = chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if not isinstance(place[key], dict | list) or not place[key] or chance.random() < 0.2:
            break
        place = place[key]
    if chance.random() < 0.15:
        del place[key]
    else:
        place[key] = chance.choice(
            [*mutations.WHOLE, *mutations.FLOATS, *mutations.TEXTS, "\ud800", [], {}, None, True]
        )
    return json.dumps(whole).encode()


def seeds():
    """Returns manifests of good form."""
    changes = [
        {},
        {"uses_time": True, "future": [{"name": "plan", "unit": "l/s"}]},
        {"step_interval_seconds": 0},
    ]
    return [json.dumps(manifest_of(**each)).encode() for each in changes]
