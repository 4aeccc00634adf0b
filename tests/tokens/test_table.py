"""Token tables: what is refused, and that a table comes back as it was."""

import pytest

from logitstore.errors import TokenError, VocabError
from logitstore.tokens.table import TokenTable, require_same


def parse(text, blank=0):
    return TokenTable.parse(text.encode("utf-8"), blank=blank, where="tokens.txt")


def test_there_and_back():
    table = TokenTable(("<blk>", "▁a", "’", "b c", "<unk>", "名"), 0)
    assert TokenTable.parse(table.to_bytes(), blank=0) == table
    assert parse("a 1\n<blk> 0\n\n").tokens == ("<blk>", "a")
    assert parse("<blk>\t0\r\na\t1\r\n").tokens == ("<blk>", "a")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<blk> 0\na\n", ":2"),
        ("<blk> 0\na x\n", ":2"),
        ("<blk> 0\na -1\n", ":2"),
        ("<blk> 0\na ١\n", ":2"),
        ("<blk> 0\na 0\n", ":2"),
        ("<blk> 0\na 2\n", "1 is missing"),
        ("a 1\n", "0 is missing"),
        ("<blk> 0\na 1\na 2\n", "'a'"),
        ("", "blank|empty|missing"),
    ],
)
def test_bad_tables_are_refused(text, says):
    with pytest.raises(VocabError, match=says):
        parse(text)


def test_not_utf8():
    with pytest.raises(VocabError, match="UTF-8"):
        TokenTable.parse(b"\xff 0\n", blank=0)


def test_blank():
    assert parse("a 0\n<blank> 1\n", blank=None).blank == 1
    with pytest.raises(VocabError, match="blank"):
        parse("a 0\nb 1\n", blank=None)
    for blank in (2, -1):
        with pytest.raises(VocabError, match="blank"):
            parse("a 0\nb 1\n", blank=blank)


def test_tokens_that_tokens_txt_cannot_hold():
    for bad in ("a\nb", "a\r"):
        with pytest.raises(VocabError, match="line break"):
            TokenTable(("<blk>", bad), 0)


def test_look_up():
    table = parse("<blk> 0\n▁a 1\nb 2\n")
    assert table.id("b") == 2
    assert table.text([1, 2, 1]) == "ab a"
    with pytest.raises(TokenError):
        table.id("c")
    for bad in (3, -1):
        with pytest.raises(TokenError):
            table.text([bad])


def test_the_first_difference_is_named():
    ours = TokenTable(("<blk>", "a", "b"), 0)
    require_same(ours, TokenTable(("<blk>", "a", "b"), 0), where="s", which=("store", "student"))
    for theirs, says in (
        (TokenTable(("<blk>", "b", "a"), 0), "first at id 1.*another order"),
        (TokenTable(("<blk>", "a"), 0), "id 2: 'b' against nothing"),
        (TokenTable(("<blk>", "a", "b"), 2), "blank is 0 in store but 2 in student"),
    ):
        with pytest.raises(VocabError, match=says):
            require_same(ours, theirs, where="s", which=("store", "student"))
