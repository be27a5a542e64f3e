"""`python -m service snapshot-key` prints a key that --snapshot-key takes."""

import pytest

from service.commands import snapshot_key
from service.engine import snapshot_keys


def test_it_prints_a_new_key_each_time(capsys):
    """One line, of 32 bytes that nobody can guess."""
    found = []
    for _ in range(2):
        assert snapshot_key.main([]) == 0
        text = capsys.readouterr().out
        assert len(text.splitlines()) == 1
        found += snapshot_keys.parse(text)
    assert [len(key) for key in found] == [32, 32]
    assert found[0] != found[1]


def test_it_takes_no_arguments(capsys):
    """A file's name given to it is no place to write to: it ends with status 2."""
    with pytest.raises(SystemExit) as caught:
        snapshot_key.main(["keys.txt"])
    assert caught.value.code == 2
    assert "keys.txt" in capsys.readouterr().err
