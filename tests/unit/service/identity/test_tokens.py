"""Bearer tokens of a file."""

import hashlib
import hmac

import pytest

from service.identity import tokens
from service.identity.tokens import Tokens, issue

DIGEST = "ab" * 32


class TestIssue:
    """New tokens."""

    def test_a_token_is_found_by_the_line_that_was_made_for_it(self):
        """Principal and end come back; the line does not have the token."""
        token, record = issue("alice", 1_900_000_000.0)
        assert token not in record.line()
        assert hashlib.sha256(token.encode()).hexdigest() in record.line()
        found = Tokens.parse(record.line()).find(token)
        assert (found.principal, found.expires) == ("alice", 1_900_000_000.0)

    def test_a_token_without_an_end_never_expires(self):
        """Its line says so."""
        token, record = issue("alice", float("inf"))
        assert record.line().endswith(" never")
        assert Tokens.parse(record.line()).find(token).expires == float("inf")

    def test_no_two_tokens_are_alike(self):
        """Each has an id and a secret of its own."""
        made = [issue("alice", 0.0) for _ in range(100)]
        assert len({token for token, _ in made}) == len({record.token_id for _, record in made}) == 100

    @pytest.mark.parametrize("principal", ["", "a b", "é", "a\0b", "#a", "x" * 129, "a\n"])
    def test_a_principal_that_would_break_a_line_or_a_key_is_refused(self, principal):
        """One word of printable ASCII."""
        with pytest.raises(ValueError, match="a principal must be"):
            issue(principal, 0.0)


class TestFind:
    """Tokens that callers send."""

    def test_only_the_whole_token_is_the_token(self):
        """One letter changed, left out or added, in the id or the secret, is another token."""
        token, record = issue("alice", float("inf"))
        other, _ = issue("alice", float("inf"))
        known = Tokens([record])
        wrong = [token[:-1], token + "A", token.upper(), f" {token}", "", tokens.PREFIX, other]
        wrong += [
            token[:at] + ("0" if token[at] != "0" else "1") + token[at + 1 :] for at in range(len(token))
        ]
        wrong.append(f"{tokens.PREFIX}{record.token_id}_{other[-43:]}")
        wrong.append("streamcell_é" + "\ud800")
        assert [each for each in wrong if known.find(each) is not None] == []
        assert known.find(token) is record

    def test_hashes_are_compared_in_constant_time(self, monkeypatch):
        """By the comparison that is made for it, whole, be the id known or not."""
        compared = []
        real = hmac.compare_digest
        monkeypatch.setattr(tokens.hmac, "compare_digest", lambda *both: compared.append(both) or real(*both))
        (token, record), (unknown, _) = issue("alice", float("inf")), issue("bob", float("inf"))
        known = Tokens([record])
        for each in (token, token[:-1] + "!", unknown, "junk"):
            known.find(each)
        assert [list(map(len, both)) for both in compared] == [[32, 32]] * 4

    def test_no_token_is_found_in_an_empty_file(self):
        """Nobody is somebody."""
        assert Tokens.parse("\n# nothing\n").find("") is None
        assert len(Tokens.parse("")) == 0


class TestParse:
    """Files."""

    def test_comments_and_empty_lines_are_skipped(self):
        """Words may be parted by several spaces; ends may have any time zone."""
        end = "2030-01-01T01:00:00+01:00"
        text = f"# ours\n\n  alice   {'0' * 12}  {DIGEST} {end}\nbob {'1' * 12} {DIGEST} never\n"
        found = Tokens.parse(text)
        assert len(found) == 2
        assert found._records["0" * 12].expires == 1893456000.0

    @pytest.mark.parametrize(
        ("line", "problem"),
        [
            (f"alice {'0' * 12} {DIGEST}", "line 2: 3 words, not the four of PRINCIPAL ID SHA-256 END"),
            (f"alice {'0' * 11} {DIGEST} never", "line 2: the id is not valid"),
            (f"alice {'0' * 12} {DIGEST[1:]} never", "line 2: the hash is not valid"),
            (f"alicé {'0' * 12} {DIGEST} never", "line 2: the principal is not valid"),
            (f"alice {'0' * 12} {DIGEST} soon", "line 2: 'soon' is no end: an instant such as"),
            (
                f"alice {'0' * 12} {DIGEST} 2030-01-01T00:00:00",
                "line 2: the end 2030-01-01T00:00:00 has no time",
            ),
            (f"alice {'f' * 12} {DIGEST} never", "line 2: the id stands on an earlier line"),
        ],
    )
    def test_a_wrong_line_is_named_and_its_hash_is_not(self, line, problem):
        """The number of the line, and what is wrong with it."""
        with pytest.raises(ValueError, match=problem) as caught:
            Tokens.parse(f"carol {'f' * 12} {DIGEST} never\n{line}")
        assert DIGEST[1:] not in str(caught.value)
