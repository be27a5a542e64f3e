"""Files of a line each."""

from service.line_lists import entries


def test_a_line_is_told_with_its_number_and_without_the_space_around_it():
    """Empty lines and comments count, and are skipped; ends of lines may be those of Windows."""
    assert list(entries("one\r\n\n  # two\n\t three # 3 \n#\n")) == [(1, "one"), (4, "three # 3")]


def test_a_line_ends_at_its_end_alone():
    """A name may have marks that Python takes for ends of lines."""
    assert list(entries("a\x0bb\u2028c\x85d\n")) == [(1, "a\x0bb\u2028c\x85d")]
