"""Tokenisation yields the reference's ids, and truncates long texts before tokenising all of them."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from sie_server.engine.text.pair_tokenizer import PairTokenizer
from sie_server.engine.text.tokenizer import TextTokenizer
from sie_server.errors import InvalidInput
from sie_server.models.spec import UnsupportedCheckpoint
from support.checkpoints.cross_encoders import (
    FAMILIES,
    SPECIAL_TOKENS,
    WORDS,
    bert_tokenizer,
    random_text,
    xlm_roberta_tokenizer,
)
from support.counting import counted


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PairTokenizer, Tokenizer]:
    """Return the server's tokenizer and the plain library's for the same file."""
    directory = tmp_path_factory.mktemp(request.param)
    plain: Tokenizer = FAMILIES[request.param][2]()
    plain.save(str(directory / "tokenizer.json"))
    return PairTokenizer(directory, "longest-first", token_types=request.param == "bert"), plain


@pytest.mark.parametrize("limit", [16, 64, 128])
def test_truncating_before_and_after_tokenisation_yields_the_same_ids(
    both: tuple[PairTokenizer, Tokenizer], limit: int
) -> None:
    ours, plain = both
    rng = random.Random(limit)
    texts = [random_text(rng, n) for n in (0, 1, 10, limit, 400, 5000)]
    texts += [
        "東京" * 3000,
        "x" * 20_000,
        " " * 50_000 + "rain",
        "rain " + " " * 50_000 + "falls " * 400,
        "\n".join(WORDS * 50),
    ]
    tokens, cut = ours.singles(texts, limit)
    for text, ids, was_cut in zip(texts, tokens, cut, strict=True):
        whole = plain.encode(text).ids
        room = limit - 2
        inner = whole[1:-1]
        assert ids.ids.tolist() == [whole[0], *inner[:room], whole[-1]]
        assert was_cut == (len(inner) > room)


def test_a_pair_is_truncated_at_the_end_of_the_document(both: tuple[PairTokenizer, Tokenizer]) -> None:
    ours, plain = both
    query, long = "machine learning", random_text(random.Random(1), 500)
    [tokens], [cut], query_cut = ours.pairs(query, [long], 50)
    pair = plain.encode(query, "a")
    query_ids = plain.encode(query, add_special_tokens=False).ids
    assert cut and not query_cut and len(tokens) == 50
    assert tokens.ids[: 1 + len(query_ids)].tolist() == pair.ids[: 1 + len(query_ids)]
    assert tokens.ids[-1] == pair.ids[-1]


def test_token_types_follow_the_checkpoint(tmp_path: Path) -> None:
    plain = bert_tokenizer()
    plain.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    for typed in (True, False):
        [tokens], _, _ = PairTokenizer(tmp_path, "longest-first", token_types=typed).pairs(
            "rain", ["stars burn"], 50
        )
        expected = plain.encode("rain", "stars burn")
        first_one = expected.type_ids.index(1)
        assert tokens.ids.tolist() == expected.ids
        assert tokens.type_boundary == (first_one if typed else len(tokens))


def test_a_query_beyond_its_cap_is_truncated_and_reported(both: tuple[PairTokenizer, Tokenizer]) -> None:
    ours, _ = both
    [tokens], [cut], query_cut = ours.pairs(random_text(random.Random(4), 5000), ["rain falls " * 20], 64)
    assert query_cut and cut and len(tokens) == 64


def test_a_huge_text_is_never_tokenised_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    xlm_roberta_tokenizer().save(str(tmp_path / "tokenizer.json"))
    tokenizer = TextTokenizer(tmp_path, token_types=False)
    counting = counted(tokenizer, monkeypatch)
    tokenizer.singles(["rain falls over the harbour " * 80_000], 512)
    assert 0 < sum(counting.calls) < 20_000


def test_special_tokens_around_a_text_come_from_the_file(both: tuple[PairTokenizer, Tokenizer]) -> None:
    ours, plain = both
    [tokens], _ = ours.singles(["rain"], 32)
    assert tokens.ids.tolist() == plain.encode("rain").ids
    assert tokens.ids.dtype == np.int32


def test_a_text_without_tokens_is_refused(tmp_path: Path) -> None:
    """Without special tokens, an empty sequence would read the hidden state of its neighbour."""
    plain = bert_tokenizer()
    plain.post_processor = None
    plain.save(str(tmp_path / "tokenizer.json"))
    tokenizer = TextTokenizer(tmp_path, token_types=False)
    assert [len(tokens) for tokens in tokenizer.singles(["rain"], 32)[0]] == [1]
    for texts in ([""], ["rain", " "]):
        with pytest.raises(InvalidInput, match="a text is empty"):
            tokenizer.singles(texts, 32)
    with pytest.raises(InvalidInput, match="a text is empty"):
        PairTokenizer(tmp_path, "longest-first", token_types=False).pairs("", [""], 32)


@pytest.mark.parametrize("content", [None, "", "{", '{"version": "1.0"}'])
def test_a_bad_tokenizer_file_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UnsupportedCheckpoint, match="tokenizer"):
        TextTokenizer(tmp_path, token_types=False)


def test_every_family_has_its_special_tokens() -> None:
    assert set(SPECIAL_TOKENS) == set(FAMILIES)
