"""The command that makes a token."""

import stat
import time

import pytest

from service.commands import token
from service.identity.tokens import Tokens


def test_a_token_is_printed_once_and_its_hash_added(tmp_path, capsys):
    """The file is its owner's alone; each line is whole, whatever the file ended with."""
    file = tmp_path / "tokens"
    made = []
    for principal, arguments in (("alice", []), ("bob", ["--days", "30"])):
        assert token.main([principal, "--file", str(file), *arguments]) == 0
        made.append(capsys.readouterr().out.strip())
        file.write_text(file.read_text().rstrip("\n"))  # as an editor may leave it
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    found = [Tokens.parse(file.read_text()).find(each) for each in made]
    assert [each.principal for each in found] == ["alice", "bob"]
    assert found[0].expires == float("inf")
    assert 29.9 < (found[1].expires - time.time()) / 86_400 < 30.1
    assert not any(each in file.read_text() for each in made)


@pytest.mark.parametrize(
    ("principal", "content", "problem"),
    [("a b", "", "a principal must be"), ("alice", "a key\n", "is no file of tokens: line 1")],
)
def test_nothing_is_written_where_something_is_wrong(tmp_path, capsys, principal, content, problem):
    """The file stays as it was, and no token is shown."""
    file = tmp_path / "tokens"
    file.write_text(content)
    assert token.main([principal, "--file", str(file)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert problem in shown.err
    assert file.read_text() == content


@pytest.mark.parametrize("days", ["0", "-1", "nan", "inf", "1e9", "1e20", "soon"])
def test_days_that_are_no_end_are_refused(tmp_path, capsys, days):
    """A token that never expires is made without --days, and one that has expired is of no use."""
    file = tmp_path / "tokens"
    with pytest.raises(SystemExit) as caught:
        token.main(["alice", "--file", str(file), "--days", days])
    assert caught.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "without --days a token never expires" in shown.err
    assert not file.exists()


def test_a_folder_that_is_not_there_is_told(tmp_path, capsys):
    """With its path."""
    assert token.main(["alice", "--file", str(tmp_path / "none" / "tokens")]) == 2
    assert "none/tokens" in capsys.readouterr().err
