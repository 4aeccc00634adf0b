"""Token tables: what they hold, how they differ, and every format they come in."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitstore.errors import TokenError, UnknownName, UsageError, VocabError
from logitstore.tokens.formats import read_table
from logitstore.tokens.table import TokenTable, require_same

LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
TEACHER = TokenTable(("<blk>", *LETTERS), 0)


def write(folder, name, text):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return path


# --- the table itself -------------------------------------------------------------------------------------


@given(
    st.lists(
        st.text(st.characters(blacklist_characters="\n\r", blacklist_categories=["Cs"]), min_size=1),
        min_size=1,
        max_size=20,
        unique=True,
    )
)
def test_any_table_survives_its_own_bytes(tokens):
    table = TokenTable(tuple(tokens), len(tokens) - 1)
    again = TokenTable.parse(table.to_bytes(), blank=table.blank)
    assert again == table
    assert again.digest() == table.digest()


@pytest.mark.parametrize(
    ("tokens", "blank", "said"),
    [
        (("a", "b"), 2, "outside a table of 2"),
        (("a", "b", "a"), 0, "'a' stands at both 0 and 2"),
        (("a", ""), 0, "token 1 is empty"),
        (("a", "b\n"), 0, "line break"),
    ],
)
def test_impossible_tables_are_refused(tokens, blank, said):
    with pytest.raises(VocabError, match=said):
        TokenTable(tokens, blank)


def test_a_tab_and_spaces_behind_are_read_too():
    assert TokenTable.parse(b"<blk>\t0\r\n\na 1  \n").tokens == ("<blk>", "a")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"<blk> 0\na\n", "f:2: 'a' is not a token and its id"),
        (b"<blk> 0\na 1\nb 1\n", "f:3: id 1 is given to 'a' and to 'b'"),
        (b"<blk> 0\na 2\n", "f: ids are not 0…1: 1 is missing"),
        (b"a 0\n", "no token is named like a blank"),
        (b"\xff 0\n", "not UTF-8"),
    ],
)
def test_a_wrong_line_is_named(text, said):
    with pytest.raises(VocabError, match=said):
        TokenTable.parse(text, where="f")


def test_tokens_that_share_a_class():
    table = TokenTable(("<blk>", "a", "b"), 0, (("á", 1), ("<filler>", -1)))
    assert table.id("á") == 1
    assert table.members(1) == ("a", "á")
    assert "á" in table
    assert "<filler>" not in table
    with pytest.raises(TokenError, match="has no class"):
        table.id("<filler>")
    with pytest.raises(VocabError, match="'b' stands at both 2 and 1"):
        TokenTable(("<blk>", "a", "b"), 0, (("b", 1),))


def test_text_knows_three_ways_to_begin_a_word():
    assert TokenTable(("<b>", "▁HE", "Y"), 0).text([1, 2, 1]) == "HEY HE"
    assert TokenTable(("<pad>", "|", "A"), 0).text([2, 1, 2]) == "A A"
    assert TokenTable(("<pad>", "|", "▁A"), 0).text([2, 1]) == "A|"
    with pytest.raises(TokenError, match="label 3"):
        TokenTable(("<pad>", "|", "A"), 0).text([3])


# --- how two tables differ --------------------------------------------------------------------------------


def refused(theirs, ours=TEACHER):
    with pytest.raises(VocabError) as caught:
        require_same(ours, theirs, where="store", which=("the store", "the student"))
    return str(caught.value)


def test_equal_tables_pass():
    require_same(TEACHER, TokenTable(TEACHER.tokens, 0), where="", which=("a", "b"))


def test_resorted():
    said = refused(TokenTable(("<blk>", *reversed(LETTERS)), 0))
    assert "differ first at id 1: 'a' against 'z'" in said
    assert "the same, in another order" in said


def test_reduced_names_counts_and_the_first_shifted_token():
    said = refused(TokenTable(("<blk>", "a", "c", "d", "<filler>"), 0))
    assert "the store has 27 tokens, the student 5" in said
    assert "differ first at id 2: 'b' against 'c'" in said
    assert "reduced table: 4 of the tokens" in said
    assert "2 of them under another id, the first 'c': 3 became 2" in said
    assert "VocabMap.by_token" in said


def test_reduced_to_the_first_ones_says_of_no_shift():
    said = refused(TokenTable(("<blk>", "a", "b"), 0))
    assert "reduced" in said
    assert "under another id" not in said


def test_extended():
    assert "which has 1 more" in refused(TokenTable((*TEACHER.tokens, "ß"), 0))


def test_blank_moved():
    assert "blank moved from 0 to 26" in refused(TokenTable((*LETTERS, "<blank>"), 26))
    assert "blank is 0 in the store but 3" in refused(TokenTable(TEACHER.tokens, 3))
    assert "only the token of the blank differs" in refused(TokenTable(("<pad>", *LETTERS), 0))


def test_case():
    said = refused(TokenTable(("<blk>", *(t.upper() for t in LETTERS)), 0))
    assert "upper and lower case" in said
    assert "spell=str.lower" in said


def test_marker():
    words = ("the", "and", "of", "to", "in")
    ours = TokenTable(("<blk>", *("▁" + w for w in words)), 0)
    assert "word markers" in refused(TokenTable(("<blk>", *("Ġ" + w for w in words)), 0), ours)


def test_characters_against_pieces():
    said = refused(TokenTable(("<blk>", "<unk>", *LETTERS, *(a + b for a in "aeiou" for b in "nrst")), 0))
    assert "a character table (0% of its" in said
    assert "a BPE table (" in said
    assert "transcripts as hard targets" in said


def test_a_few_keyword_characters_are_a_reduced_table_nonetheless():
    pinyin = TokenTable(("<blk>", "n", "i", "h", "ao", "w", "en", "x", "iao", "ang", "eng", "ing"), 0)
    assert "reduced" in refused(TokenTable(("<blk>", "n", "i", "h"), 0), pinyin)


def test_foreign():
    other = TokenTable(("<blk>", *"абвгдежзик", "<unk>"), 0)
    assert "no token in common" in refused(other)
    assert "no token in common" in refused(other, TokenTable(("<blk>", *"一二三四五六七八九十", "<unk>"), 0))


def test_overlapping():
    assert "they share 2 tokens" in refused(TokenTable(("<blk>", "a", "b", "ж", "щ", "ю"), 0))


# --- tokens.txt -------------------------------------------------------------------------------------------


def test_k2_tokens_without_disambiguation_symbols(tmp_path):
    path = write(tmp_path, "tokens.txt", "<blk> 0\n<sos/eos> 1\n<unk> 2\n▁THE 3\nS 4\n#0 5\n#1 6\n")
    table = read_table(path)
    assert table.tokens == ("<blk>", "<sos/eos>", "<unk>", "▁THE", "S")
    assert table.blank == 0


def test_symbols_like_them_elsewhere_stay(tmp_path):
    assert len(read_table(write(tmp_path, "tokens.txt", "<blk> 0\n#0 1\na 2\n"))) == 3
    assert len(read_table(write(tmp_path, "tokens.txt", "<blk> 0\na 1\n#7 2\n"))) == 3


def test_padded_columns_tabs_marks_and_line_ends_of_others(tmp_path):
    path = write(tmp_path, "tokens.txt", b"\xef\xbb\xbf<blk>\t0\r\n  1\r\nlonger   2\r\n# 3\r\n")
    assert read_table(path).tokens == ("<blk>", " ", "longer", "#")


def test_sherpa_puts_nemos_blank_last(tmp_path):
    assert read_table(write(tmp_path, "tokens.txt", "a 0\nb 1\n<blk> 2\n")).blank == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<blk> 0\na 1\nb 1\n", r"tokens.txt:3: id 1 is given to 'a' and to 'b'"),
        ("<blk> 0\na 1\na 2\n", r"tokens.txt:3: token 'a' is already on line 2"),
        ("<blk> 0\na 1\nb\n", r"tokens.txt:3: 'b' is not a token and its id"),
        ("<blk> 0\na 1\nb -1\n", r"tokens.txt:3: 'b' has id -1"),
        ("<blk> 1\na 2\n", r"0 is missing"),
    ],
)
def test_a_wrong_tokens_txt_names_its_line(tmp_path, text, said):
    with pytest.raises(VocabError, match=said):
        read_table(write(tmp_path, "tokens.txt", text))


# --- dict.txt ---------------------------------------------------------------------------------------------


def test_wekws_reduced_dictionary(tmp_path):
    text = "# kept: one keyword\n<eps> -1\n<blk> 0\nsil 0\n<filler> 1\na 1\nb 1\nn 2\n\ni3 3\n"
    table = read_table(write(tmp_path, "dict.txt", text))
    assert table.tokens == ("<blk>", "<filler>", "n", "i3")
    assert table.members(0) == ("<blk>", "sil")
    assert table.members(1) == ("<filler>", "a", "b")
    assert "<eps>" not in table
    assert table.blank == 0


def test_the_blank_names_its_class_wherever_it_stands_in_it(tmp_path):
    assert read_table(write(tmp_path, "dict.txt", "sil 0\n<blk> 0\na 1\n")).tokens == ("<blk>", "a")


def test_shared_ids_are_recognised_under_any_name(tmp_path):
    assert len(read_table(write(tmp_path, "small", "<blk> 0\na 1\nb 1\n"))) == 2


def test_max_pooling_keywords_need_a_blank(tmp_path):
    path = write(tmp_path, "dict.txt", "<FILLER> -1\n<HI_XIAOWEN> 0\n<NIHAO_WENWEN> 1\n")
    with pytest.raises(VocabError, match="no token is named like a blank"):
        read_table(path)
    assert read_table(path, blank=1).tokens == ("<HI_XIAOWEN>", "<NIHAO_WENWEN>")


def test_wenet_units_and_espnet_lists(tmp_path):
    text = "<blank> 0\n<unk> 1\n'  2\n一 3\n<sos/eos> 4\n"
    assert read_table(write(tmp_path, "units.txt", text)).tokens == (
        "<blank>",
        "<unk>",
        "'",
        "一",
        "<sos/eos>",
    )
    listed = write(tmp_path, "tokens.txt", "<blank>\n<unk>\n#\n▁A\n")
    assert read_table(listed).tokens == ("<blank>", "<unk>", "#", "▁A")


def test_espnet_begins_at_one(tmp_path):
    path = write(tmp_path, "train_units.txt", "<unk> 1\na 2\n")
    with pytest.raises(VocabError, match="ids begin at 1"):
        read_table(path, format="dict_txt")
    assert read_table(path, 0, "dict_txt").tokens == ("<blank>", "<unk>", "a")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<blk> 0\na 1\na 2\n", "dict.txt:3: token 'a' is already on line 2"),
        ("<blk> 0\na 1\nb\n", "dict.txt:3: 'b' has no id"),
        ("<blk> 0\na 1\nb -2\n", "dict.txt:3: 'b' has id -2"),
        ("<blk> 0\na 1\n#b 2\n", "dict.txt:3: '#b' with id 2 is a comment or a token"),
        ("<blk> 0\na 1\nb 3\n", "2 is missing"),
        ("<blk>\na\nb 3\n", "dict.txt:3: 'b' has an id"),
        ("<blk>\na\na\n", "dict.txt:3: token 'a' is already on line 2"),
    ],
)
def test_a_wrong_dict_txt_names_its_line(tmp_path, text, said):
    with pytest.raises(VocabError, match=said):
        read_table(write(tmp_path, "dict.txt", text), format="dict_txt")


# --- NeMo -------------------------------------------------------------------------------------------------

LABELS = (" ", "a", "no", "'")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.yaml", 'name: x\nmodel:\n  decoder:\n    vocabulary: [" ", a, no, "\'"]\n'),
        ("config.yml", "labels: &l\n- ' '\n- a\n- no\n- ''''\nmodel:\n  labels: *l\n  sample_rate: 16000\n"),
        ("labels.yaml", "- ' '\n- a\n- no\n- ''''\n"),
        ("vocabulary.json", json.dumps(LABELS)),
        ("vocabulary.txt", " \na\nno\n'\n"),
    ],
)
def test_nemo_blank_comes_last(tmp_path, name, text):
    table = read_table(write(tmp_path, name, text))
    assert table.tokens == (*LABELS, "<blank>")
    assert table.blank == 4


def test_a_list_that_names_its_blank_is_believed(tmp_path):
    assert read_table(write(tmp_path, "config.yaml", "token_list: [<blank>, a, b]\n")).blank == 0
    assert read_table(write(tmp_path, "v.json", '["a", "b"]'), blank=1).tokens == ("a", "b")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("c.yaml", "a: {labels: [a, b]}\nb: {labels: [a, c]}\n", "but a.labels, b.labels"),
        ("c.yaml", "a: 1\n", "but none"),
        ("c.yaml", "a: [1\n", "not YAML"),
        ("v.json", "[1, 2]", "not a list of strings"),
        ("v.json", "[1, ", "not JSON"),
        ("v.json", '["a", "b", "a"]', "'a' stands at both 0 and 2"),
        ("vocab.txt", "a\n\nb\n", "vocab.txt:2: an empty line"),
        ("vocab.txt", "the\n##s\n", "tokenizer.model"),
    ],
)
def test_a_wrong_nemo_list_says_why(tmp_path, name, text, said):
    with pytest.raises(VocabError, match=said):
        read_table(write(tmp_path, name, text))


# --- Hugging Face -----------------------------------------------------------------------------------------


def test_hugging_face_blank_is_the_padding_token(tmp_path):
    vocab = {"[UNK]": 3, "[PAD]": 4, "|": 0, "a": 1, "b": 2}
    table = read_table(write(tmp_path, "vocab.json", json.dumps(vocab)))
    assert table.tokens == ("|", "a", "b", "[UNK]", "[PAD]")
    assert table.blank == 4
    assert table.text([1, 0, 2]) == "a b"


@pytest.mark.parametrize("pad", ["<pad>", {"content": "<pad>", "lstrip": False}])
def test_the_config_beside_it_says_which_token_pads(tmp_path, pad):
    path = write(tmp_path, "vocab.json", json.dumps({"[PAD]": 0, "<pad>": 1, "a": 2}))
    with pytest.raises(VocabError, match="both"):
        read_table(path)
    write(tmp_path, "tokenizer_config.json", json.dumps({"pad_token": pad}))
    assert read_table(path).blank == 1
    write(tmp_path, "tokenizer_config.json", json.dumps({"pad_token": "nowhere"}))
    with pytest.raises(VocabError, match="'nowhere' of tokenizer_config"):
        read_table(path)


@pytest.mark.parametrize("vocab", [{"a": 0, "b": 1}, [["a", -1.5], ["b", -2.0]]])
def test_tokenizer_json(tmp_path, vocab):
    value = {"model": {"type": "X", "vocab": vocab}, "added_tokens": [{"id": 2, "content": "<pad>"}]}
    table = read_table(write(tmp_path, "tokenizer.json", json.dumps(value)))
    assert table.tokens == ("a", "b", "<pad>")
    assert table.blank == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"<pad>": 0, "a": 1, "b": 1}', "id 1 is given to 'a' and to 'b'"),
        ('{"<pad>": 0, "a": 1, "a": 2}', "'a' appears twice"),
        ('{"<pad>": 0, "a": 2}', "1 is missing"),
        ('{"<pad>": 0, "a": "1"}', "token 'a' has id '1'"),
        ('{"deu": {"<pad>": 0}, "eng": {"<pad>": 0}}', "several tables: deu, eng"),
        ('{"a": 0}', "no token is named like a blank"),
        ('{"a": ', "not JSON"),
        ('{"model": {"vocab": [1, 2]}}', "not a tokenizer.json"),
        ('{"model": {"vocab": {"<pad>": 0}}, "added_tokens": [{"id": 1}]}', "not a tokenizer.json"),
        ('{"model": {}}', "no model.vocab"),
    ],
)
def test_a_wrong_vocab_json_says_why(tmp_path, text, said):
    with pytest.raises(VocabError, match=said):
        read_table(write(tmp_path, "vocab.json", text))


# --- SentencePiece ----------------------------------------------------------------------------------------


def test_sentencepiece_vocab_needs_no_library(tmp_path):
    path = write(tmp_path, "bpe.vocab", "<blk>\t0\n<unk>\t0\n▁t\t-0\nhe\t-1\n")
    assert read_table(path).tokens == ("<blk>", "<unk>", "▁t", "he")


def test_sentencepiece_without_a_blank(tmp_path):
    path = write(tmp_path, "tokenizer.vocab", "<unk>\t0\n<pad>\t0\n▁t\t-1.25\n")
    with pytest.raises(VocabError, match="blank=3 appends it"):
        read_table(path)
    assert read_table(path, blank=3).tokens == ("<unk>", "<pad>", "▁t", "<blank>")
    with pytest.raises(VocabError, match=r"x.vocab:2: 'a b' is not a piece and its score"):
        read_table(write(tmp_path, "x.vocab", "a\t0\na b\n"))


def test_sentencepiece_model(tmp_path):
    library = pytest.importorskip("sentencepiece")
    corpus = write(tmp_path, "text", "the cat sat on the mat\nthat hat is the best\n" * 20)
    library.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(tmp_path / "bpe"),
        model_type="bpe",
        vocab_size=32,
        user_defined_symbols=["<blk>"],
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    table = read_table(tmp_path / "bpe.model")
    assert len(table) == 32
    assert table.blank == table.id("<blk>")
    assert table.id("<unk>") == 1
    assert table == read_table(tmp_path / "bpe.vocab")
    with pytest.raises(VocabError, match="not a SentencePiece model"):
        read_table(write(tmp_path, "broken.model", b"\0\1\2"))


def test_sentencepiece_model_without_the_library(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sentencepiece", None)
    with pytest.raises(UsageError, match=r"logitstore\[sentencepiece\]"):
        read_table(write(tmp_path, "bpe.model", b"x"))


# --- which format it is -----------------------------------------------------------------------------------


def test_a_list_that_could_be_anything_is_asked_about(tmp_path):
    path = write(tmp_path, "words.txt", "a\nb\n")
    with pytest.raises(VocabError, match="no known format of token tables"):
        read_table(path)
    assert read_table(path, format="nemo").blank == 2
    assert read_table(path, blank=0, format="dict_txt").tokens == ("a", "b")


def test_an_unknown_format_lists_the_known(tmp_path):
    with pytest.raises(UnknownName, match="huggingface"):
        read_table(write(tmp_path, "t", "a 0"), format="hugingface")


def test_no_file(tmp_path):
    with pytest.raises(VocabError, match="cannot be read"):
        read_table(tmp_path / "tokens.txt")


@given(
    st.binary(max_size=60), st.sampled_from(["tokens.txt", "dict.txt", "a.json", "a.yaml", "a.vocab", "x"])
)
def test_any_bytes_are_a_table_or_an_error_of_ours(tmp_path_factory, data, name):
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(data)
    with contextlib.suppress(VocabError):
        assert len(read_table(path)) > 0


# --- a folder ---------------------------------------------------------------------------------------------


def test_a_folder_with_one_table_is_read(tmp_path):
    write(tmp_path, "bpe.model", b"\x00")
    write(tmp_path, "words.txt", "<eps> 0\nhello 1\n")
    write(tmp_path, "tokens.txt", "<blk> 0\na 1\nb 2\n")
    assert read_table(tmp_path) == read_table(tmp_path / "tokens.txt")


def test_a_folder_whose_only_table_has_another_name_is_read(tmp_path):
    write(tmp_path, "my_tokens.txt", "<blk> 0\na 1\nb 2\n")
    write(tmp_path, "README", "about this folder\n")
    assert read_table(tmp_path).tokens == ("<blk>", "a", "b")


def test_a_folder_with_two_tables_or_none_is_refused(tmp_path):
    with pytest.raises(VocabError, match="no token table"):
        read_table(tmp_path)
    write(tmp_path, "tokens.txt", "<blk> 0\na 1\nb 2\n")
    write(tmp_path, "units.txt", "<blk> 0\nb 1\na 2\n")
    with pytest.raises(VocabError, match=r"several token tables: tokens\.txt, units\.txt"):
        read_table(tmp_path)
