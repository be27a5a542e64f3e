"""The files of an operator, allowed artifacts and keys of snapshots: a slip is named by its line.

An input is a byte of flags and a file. With KEYS it is a file of keys.
"""

import re

from service.engine import snapshot_keys
from service.runtime import allowed_artifacts
from tests.fuzz import mutations

KEYS = 1
HASH = "0123456789abcdef" * 4
PARTS = [HASH, HASH.upper(), HASH[:-1], "ab" * 40, "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "model.pt"]
PARTS += [
    "#",
    "\\",
    "  ",
    " *",
    "\t",
    "\n",
    "\r\n",
    "\r",
    "\ufeff",
    "\x1c",
    "\u2028",
    "\x85",
    "\0",
    "=",
    "+/",
    "-_",
    "é",
]


def run(raw):
    """Reads a file: what is found in it is there, and what is refused is refused by the number of a line."""
    flags, content = (raw[0], raw[1:]) if raw else (0, b"")
    text = content.decode("ascii" if flags & KEYS else "utf-8-sig", errors="replace")
    found, refusal = None, ""
    try:
        found = snapshot_keys.parse(text) if flags & KEYS else allowed_artifacts.parse(text)
    except ValueError as error:
        refusal = str(error)
    if found is None:
        assert re.match(r"(line \d+ |holds no key$)", refusal), refusal
        assert "\n" not in refusal
        return
    if flags & KEYS:
        assert found
        assert all(len(key) >= snapshot_keys.LEAST_KEY_BYTES for key in found)
    else:
        assert all(re.fullmatch("[0-9a-f]{64}", each) and each in text.lower() for each in found)
        assert len(found) <= len(re.findall("[0-9a-fA-F]{64}", text))


def mutate(raw, chance):
    """Changes a part of the text, and sometimes what kind of file it is."""
    flags, content = (raw[0], raw[1:]) if raw else (0, b"")
    if chance.random() < 0.1:
        flags ^= KEYS
    if chance.random() < 0.2:
        return bytes([flags]) + mutations.of_bytes(content, chance)
    text = mutations.of_text(content.decode(errors="replace"), chance, PARTS)
    return bytes([flags]) + text.encode(errors="replace")


def seeds():
    """Returns files of good form."""
    allowed = f"# ours\n{HASH}  nyc-taxi/1/model.pt\n\\{HASH[::-1]} *odd\\\\name\n\n{HASH.upper()}\n"
    keys = f"# first signs\n{HASH}\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"
    return [b"\0" + allowed.encode(), bytes([KEYS]) + keys.encode()]
