"""Messages in files, for other load generators."""

import pytest
from streamcell.v1 import streamcell_pb2 as pb

from bench import payloads


def messages(content, kind):
    """Reads a file's payloads back."""
    found = []
    while content:
        size = int.from_bytes(content[:4], "little")
        found.append(kind.FromString(content[4 : 4 + size]))
        content = content[4 + size :]
    return found


def test_every_session_has_its_payloads():
    """Unary steps name their session, streams bind theirs and step it by number; no step has an index."""
    found = payloads.files(["a", "b"])
    unary = messages(found["unary.bin"], pb.StepRequest)
    assert [each.session_id for each in unary] == ["a", "b"]
    firsts = messages(found["first.bin"], pb.StreamRequest)
    assert [list(each.config.session_ids) for each in firsts] == [["a"], ["b"]]
    steps = [each.step for each in messages(found["stream.bin"], pb.StreamRequest)]
    assert [each.session for each in steps] == [0, 0]
    for step in (*unary, *steps):
        assert len(step.x) == 8
        assert not step.HasField("step_index")


def test_target_that_does_not_answer_is_named(capsys, tmp_path):
    """The error is one line, and no file is written."""
    with pytest.raises(SystemExit):
        payloads.main(["--out", str(tmp_path)])
    capsys.readouterr()
    assert payloads.main(["--target", "127.0.0.1:1", "--out", str(tmp_path / "x")]) == 1
    assert capsys.readouterr().err.startswith("bench.payloads: 127.0.0.1:1: ")
    assert not (tmp_path / "x").exists()
