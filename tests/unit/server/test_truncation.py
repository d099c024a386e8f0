"""A pair is cut as the library cuts it that the checkpoint's users run, on the side that the tokenizer names."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from sie_server.catalog import ModelConfig
from sie_server.config import ServerConfig
from sie_server.engine.engine import Engine
from sie_server.engine.job import Chunking
from sie_server.engine.text.pair_tokenizer import PairTokenizer
from sie_server.engine.text.slices import SLICE_CHARS
from sie_server.errors import ModelLoadFailed
from sie_server.models.checkpoints.reader import read_spec
from sie_server.models.spec import ClassifierSpec, UnsupportedCheckpoint
from sie_server.serving.loading.loader import load_engine
from sie_server.templates.pair_settings import Truncation
from support.checkpoints.colbert import make_stanford
from support.checkpoints.cross_encoders import FAMILIES, make_cross_encoder, random_text
from support.checkpoints.decoders import make_decoder

SIDES = ("right", "left")
TOKENIZERS = (
    "bert",
    "xlm-roberta",
    "roberta",
)  # three and four special tokens in a pair
NAMES = ["input_ids", "token_type_ids", "attention_mask"]


def made(directory: Path, family: str, side: str) -> tuple[Path, Tokenizer]:
    """Return a directory with a tokenizer that truncates on that side, and the library's tokenizer."""
    plain: Tokenizer = FAMILIES[family][2]()
    plain.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"truncation_side": side, "model_input_names": NAMES})
    )
    return directory, plain


def queries_and_documents(rng: random.Random, limit: int) -> list[tuple[str, str]]:
    """Return pairs with lengths around every limit: none, a half, three quarters, all, and far more."""
    sizes = [0, 1, limit // 2 - 2, limit // 2, limit * 3 // 4, limit - 1, limit, limit + 1, 3 * limit]
    return [
        (random_text(rng, q + rng.randrange(3)), random_text(rng, d + rng.randrange(3)))
        for q in sizes
        for d in sizes
    ]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("family", TOKENIZERS)
@pytest.mark.parametrize("limit", [8, 24, 41])
def test_the_longer_text_is_cut_as_the_library_cuts_it(
    family: str, side: str, limit: int, tmp_path: Path
) -> None:
    directory, plain = made(tmp_path, family, side)
    ours = PairTokenizer(directory, "longest-first", token_types=True)
    for query, document in queries_and_documents(random.Random(limit), limit):
        plain.no_truncation()
        whole = [len(plain.encode(text, add_special_tokens=False)) for text in (query, document)]
        plain.enable_truncation(limit, strategy="longest_first", direction=side)
        expected = plain.encode(query, document)
        [tokens], [cut], query_cut = ours.pairs(query, [document], limit)
        assert tokens.ids.tolist() == expected.ids
        kept = [sum(sequence == i for sequence in expected.sequence_ids) for i in (0, 1)]
        assert [query_cut, cut] == [kept[i] < whole[i] for i in (0, 1)]
        if any(expected.type_ids):
            assert tokens.type_boundary == expected.type_ids.index(1)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("family", TOKENIZERS)
@pytest.mark.parametrize("limit", [24, 41, 64])
def test_the_query_keeps_three_quarters_as_in_flag_embedding(
    family: str, side: str, limit: int, tmp_path: Path
) -> None:
    directory, plain = made(tmp_path, family, side)
    ours = PairTokenizer(directory, "query-first", token_types=False)
    special = plain.num_special_tokens_to_add(is_pair=True)
    for query, document in queries_and_documents(random.Random(limit), limit):
        whole = [plain.encode(text, add_special_tokens=False).ids for text in (query, document)]
        query_room = limit * 3 // 4
        document_room = limit - special - min(len(whole[0]), query_room)
        kept = [
            ids[max(0, len(ids) - most) :] if side == "left" else ids[:most]
            for ids, most in zip(whole, (query_room, document_room), strict=True)
        ]
        [tokens], [cut], query_cut = ours.pairs(query, [document], limit)
        assert [i for i in tokens.ids.tolist() if i in set(whole[0] + whole[1])] == [
            i for i in kept[0] + kept[1] if i in set(whole[0] + whole[1])
        ]
        assert (query_cut, cut) == (len(whole[0]) > query_room, len(whole[1]) > document_room)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("longer", ["query", "document", "neither"])
def test_of_two_texts_beyond_the_limit_the_longer_keeps_the_odd_token(
    longer: str, side: str, tmp_path: Path
) -> None:
    directory, plain = made(tmp_path, "bert", side)
    ours = PairTokenizer(directory, "longest-first", token_types=True)
    query, document = "rain falls " * 200, "stars burn " * 200
    query += "rain " * (longer == "query")
    document += "stars " * (longer == "document")
    for limit in (128, 129):
        plain.enable_truncation(limit, strategy="longest_first", direction=side)
        [tokens], [cut], query_cut = ours.pairs(query, [document], limit)
        assert tokens.ids.tolist() == plain.encode(query, document).ids
        assert cut and query_cut


@pytest.mark.parametrize("family", ["bert", "xlm-roberta", "roberta"])
def test_the_end_of_a_text_of_several_slices_is_read(family: str, tmp_path: Path) -> None:
    directory, plain = made(tmp_path, family, "left")
    text = random_text(random.Random(7), 16_000)
    assert len(text) > SLICE_CHARS
    ours = PairTokenizer(directory, "longest-first", token_types=False)
    plain.enable_truncation(64, direction="left")
    [tokens], [cut] = ours.singles([text], 64, prefix="query: ")
    assert tokens.ids.tolist() == plain.encode("query: " + text).ids and cut
    [tokens], [cut] = ours.singles(["rain falls"], 64, prefix="query: ")
    assert tokens.ids.tolist() == plain.encode("query: rain falls").ids and not cut


def test_a_batch_is_cut_pair_by_pair(tmp_path: Path) -> None:
    directory, plain = made(tmp_path, "roberta", "right")
    ours = PairTokenizer(directory, "longest-first", token_types=False)
    rng = random.Random(5)
    query, documents = random_text(rng, 40), [random_text(rng, n) for n in (0, 3, 20, 38, 40, 60, 400)]
    sequences, cut, query_cut = ours.pairs(query, documents, 48)
    plain.enable_truncation(48, strategy="longest_first")
    assert [tokens.ids.tolist() for tokens in sequences] == [plain.encode(query, d).ids for d in documents]
    assert query_cut and cut[:2] == [False, False] and all(cut[3:])


@pytest.mark.parametrize("truncation", ["longest-first", "query-first"])
def test_windows_have_the_query_of_a_long_document(truncation: Truncation, tmp_path: Path) -> None:
    """A document in one window is read as without chunks; no token of a document that is split is lost."""
    directory, plain = made(tmp_path, "bert", "right")
    ours = PairTokenizer(directory, truncation, token_types=False)
    rng = random.Random(6)
    query, short, long = random_text(rng, 60), random_text(rng, 5), random_text(rng, 120)
    sequences, parts, query_cut = ours.windows(query, [short, long], 64, Chunking(0, 50))
    [alone], _, _ = ours.pairs(query, [short], 64)
    assert sequences[0].ids.tolist() == alone.ids.tolist() and query_cut
    assert all(len(tokens) <= 64 for tokens in sequences) and not any(parts.cut)
    assert [i for ids in parts.ids[1:] for i in ids.tolist()] == plain.encode(
        long, add_special_tokens=False
    ).ids
    share = (64 - 3) // 2 if truncation == "longest-first" else 64 * 3 // 4
    assert len(sequences[1]) - len(parts.ids[1]) - 3 == share


def test_the_operator_or_the_catalog_names_the_rule(tmp_path: Path) -> None:
    directory = make_cross_encoder(tmp_path / "checkpoint", "bert", max_length=64)

    def rule(known: Truncation | None = None) -> str:
        head = read_spec(directory, truncation=known).head
        assert isinstance(head, ClassifierSpec)
        return head.truncation

    assert (rule(), rule("query-first")) == ("longest-first", "query-first")
    (directory / "sie_reranker.yaml").write_text("truncation: query-first")
    assert rule() == "query-first"
    (directory / "sie_reranker.yaml").write_text("truncation: longest-first")
    assert rule("query-first") == "longest-first"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("truncation: only_second", "'only_second'.*longest-first or query-first"),
        ("template: qwen3-reranker", "reads query and document as a pair"),
        ("truncate: longest-first", "reads query and document as a pair"),
        ("- 1", "reads query and document as a pair"),
        ("{", "cannot be read"),
    ],
)
def test_a_wrong_setting_is_refused(content: str, message: str, tmp_path: Path) -> None:
    directory = make_cross_encoder(tmp_path / "checkpoint", "bert", max_length=64)
    (directory / "sie_reranker.yaml").write_text(content)
    with pytest.raises(UnsupportedCheckpoint, match=message):
        read_spec(directory)


def test_another_side_is_refused(tmp_path: Path) -> None:
    directory, _ = made(tmp_path, "bert", "middle")
    with pytest.raises(UnsupportedCheckpoint, match="truncation_side is 'middle'"):
        PairTokenizer(directory, "longest-first", token_types=False)


def test_a_limit_above_the_positions_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = make_cross_encoder(tmp_path / "checkpoint", "bert", max_length=64)
    positions = read_spec(directory).backbone.max_length
    for limit in (positions + 1, positions):
        caplog.clear()
        model = ModelConfig("acme/contracts", str(directory), max_seq_length=limit)
        engine = load_engine(model, directory, ServerConfig(device="cpu", dtype="float32"))
        assert engine.max_seq_length == positions
        assert ("acme/contracts: its catalog entry has max_seq_length" in caplog.text) == (limit > positions)


@pytest.mark.parametrize("kind", ["template", "ColBERT"])
def test_the_left_side_is_refused_where_it_is_not_supported(kind: str, tmp_path: Path) -> None:
    if kind == "template":
        directory = make_decoder(tmp_path / "checkpoint", "qwen3")
    else:
        directory = make_stanford(tmp_path / "checkpoint", "bert", None)
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"truncation_side": "left"}))
    with pytest.raises(ModelLoadFailed, match="truncation_side 'left', which is not supported for"):
        Engine(directory, device="cpu", template="qwen3-reranker" if kind == "template" else None)
