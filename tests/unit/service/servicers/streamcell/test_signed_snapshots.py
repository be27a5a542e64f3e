"""With --snapshot-key a server restores what its fleet signed, and says of other bytes why not."""

import pathlib

import pytest
from streamcell.v1 import streamcell_pb2 as pb

from service.engine import snapshot
from service.errors import Code
from tests.fakes import Served, bits

FIRST, SECOND = bytes(range(32)), bytes(range(1, 33))
X = [1.0, 2.0]


@pytest.fixture
def serve(tmp_path):
    """Returns a function that makes a server with the keys given; without any it has no key file."""

    def make(*keys):
        path = tmp_path / "-".join(["keys", *(key.hex()[:4] for key in keys)])
        path.write_text("".join(f"{key.hex()}\n" for key in keys))
        return Served(snapshot_key=str(path) if keys else "")

    return make


async def taken(server, session_id="s", principal=""):
    """Opens a session, runs a step, and returns its snapshot."""
    await server.open(session_id, principal=principal)
    await server.ask("Step", pb.StepRequest(session_id=session_id, x=X), principal)
    request = pb.SnapshotSessionRequest(session_id=session_id)
    return (await server.ask("SnapshotSession", request, principal)).snapshot


def restoring(raw):
    """Returns the request that restores bytes under another id."""
    return pb.RestoreSessionRequest(snapshot=raw, session_id="restored")


def rotate(server, key):
    """Puts another key into the server's file, and has it read."""
    path = pathlib.Path(server.settings.snapshot_key)
    path.with_suffix(".new").write_text(f"{key.hex()}\n")
    path.with_suffix(".new").replace(path)
    for file in server.snapshot_keys.files:
        file.look()


async def refused(server, raw):
    """Returns the words of a refusal, which opened nothing."""
    refusal = await server.refused("RestoreSession", restoring(raw))
    assert (refusal.code, refusal.reason) == (Code.FAILED_PRECONDITION, "SNAPSHOT_REJECTED")
    gone = await server.refused("GetSession", pb.GetSessionRequest(session_id="restored"))
    assert gone.reason == "SESSION_NOT_FOUND"
    return refusal.message


async def test_a_signed_session_goes_on_at_another_server_of_the_fleet(serve):
    """With the bits of the session that it was taken from."""
    first, second = serve(FIRST), serve(FIRST)
    raw = await taken(first)
    restored = await second.ask("RestoreSession", restoring(raw))
    assert restored.session.next_step_index == 1
    there = await second.ask("Step", pb.StepRequest(session_id="restored", x=X))
    here = await first.ask("Step", pb.StepRequest(session_id="s", x=X))
    assert bits(there.y) == bits(here.y)


async def test_an_unsigned_snapshot_is_refused(serve):
    """Be it whole, forged or nothing at all."""
    server, without = serve(FIRST), serve()
    for raw in (await taken(without), b"", b"SCSN"):
        assert "it is not signed" in await refused(server, raw)


async def test_another_fleets_snapshot_is_refused(serve):
    """The words name the key, not the snapshot."""
    assert "signed with another key" in await refused(serve(FIRST), await taken(serve(SECOND)))


async def test_a_changed_snapshot_is_refused_before_it_is_read(serve, monkeypatch):
    """Bytes that nobody vouches for never reach the decoder."""
    server = serve(FIRST)
    raw = await taken(server)

    def fail(raw):
        raise AssertionError("decoded")

    monkeypatch.setattr(snapshot, "decode", fail)
    for at in (0, 20, 60, len(raw) - 1):
        await refused(server, raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])


async def test_a_server_without_a_key_takes_both(serve):
    """What it takes is checked as ever."""
    without, signed = serve(), await taken(serve(FIRST))
    assert (await without.ask("RestoreSession", restoring(signed))).session.next_step_index == 1
    damaged = signed[:-1] + bytes([signed[-1] ^ 1])
    refusal = await without.refused("RestoreSession", pb.RestoreSessionRequest(snapshot=damaged))
    assert "its checksum is wrong" in refusal.message


async def test_a_rotated_key_counts_after_a_reload(serve):
    """Snapshots of the old key are refused once it is out of the file."""
    server = serve(FIRST)
    old = await taken(server)
    rotate(server, SECOND)
    assert "signed with another key" in await refused(server, old)
    new = (await server.ask("SnapshotSession", pb.SnapshotSessionRequest(session_id="s"))).snapshot
    assert (await server.ask("RestoreSession", restoring(new))).session.next_step_index == 1


async def test_a_snapshot_is_a_bearer_document(serve):
    """Whoever has it may restore it: the session is then theirs, and the other's goes on."""
    server = serve(FIRST)
    raw = await taken(server, principal="alice")
    await server.ask("RestoreSession", restoring(raw), "bob")
    found = await server.ask("GetSession", pb.GetSessionRequest(session_id="restored"), "bob")
    assert found.session.next_step_index == 1
    gone = await server.refused("GetSession", pb.GetSessionRequest(session_id="restored"), "alice")
    assert gone.reason == "SESSION_NOT_FOUND"


async def test_a_fork_needs_no_key(serve):
    """Its bytes never leave the server."""
    server = serve(FIRST)
    await taken(server)
    request = pb.ForkSessionRequest(session_id="s", new_session_id="t")
    assert (await server.ask("ForkSession", request)).session.next_step_index == 1
