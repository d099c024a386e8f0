"""Every text is tokenised only as far as the wanted tokens need, and a text that is cut is reported."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from sie_server.engine.document_cache import DocumentCache, ModelDocuments
from sie_server.engine.job import Chunking, Job, ScoreTexts
from sie_server.engine.kinds.base import ChunkInput, TextInput
from sie_server.engine.kinds.colbert import ColbertInput
from sie_server.engine.kinds.embeddings import LateInteractionInput
from sie_server.engine.kinds.listwise import (
    DOCUMENT_END,
    QUERY_END,
    ListwiseInput,
    ListwiseTokenizer,
    _without_marks,
)
from sie_server.engine.kinds.pairs import PairInput
from sie_server.engine.kinds.prompted import PromptInput
from sie_server.engine.text import reading
from sie_server.engine.text.pair_tokenizer import PairTokenizer
from sie_server.engine.text.prompt_tokenizer import PromptTokenizer
from sie_server.engine.text.slices import SLICE_CHARS, most_chars, paced
from sie_server.engine.text.tokenizer import TextTokenizer, _longest_start
from sie_server.errors import InvalidInput
from sie_server.models.spec import LateInteractionSpec, ListwiseSpec
from sie_server.templates import named_template
from support.checkpoints.cross_encoders import FAMILIES, random_text
from support.checkpoints.decoders import byte_level_tokenizer, gemma_tokenizer
from support.counting import counted

TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    **{name: family[2] for name, family in FAMILIES.items() if name != "modernbert-mean"},
    "qwen": byte_level_tokenizer,
    "gemma": gemma_tokenizer,
}
HUGE = 400_000  # characters: more than any bound below
SHAPES = {
    "blanks": " ",
    "no-break spaces": "\u00a0",
    "newlines": "\n",
    "tabs and blanks": " \t",
    "one letter": "a",
    "letters": "qzxj",
    "words of one letter": "a ",
    "long words": "k" * 300 + " ",
    "digits": "7",
    "dots": ".",
    "combining marks": "\u0301",
    "two combining marks": "\u0323\u0301",
    "zero-width": "\u200b",
    "NUL": "\0",
    "emoji": "😀",
    "families": "👨‍👩‍👧‍👦",
    "ideographs": "東京大学",
    "Thai": "กรุงเทพ",
    "Hangul": "한국어",
    "expanding": "\ufdfa",
    "word marker": "\u2581",
    "control token": "<|im_start|>",
    "read-out token": DOCUMENT_END,
    "mask token": "[MASK]",
    "byte token": "<0x41>",
}


def huge(unit: str) -> str:
    return unit * (HUGE // len(unit))


def tokenizer_file(directory: Path, name: str) -> Path:
    TOKENIZERS[name]().save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(scope="module", params=sorted(TOKENIZERS))
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TextTokenizer, Tokenizer]:
    """Return the server's tokenizer and the plain library's for the same file."""
    directory = tokenizer_file(tmp_path_factory.mktemp(request.param), request.param)
    return TextTokenizer(directory, token_types=False), Tokenizer.from_file(str(directory / "tokenizer.json"))


@pytest.mark.parametrize("unit", SHAPES.values(), ids=SHAPES)
def test_a_huge_text_costs_what_its_tokens_need(
    both: tuple[TextTokenizer, Tokenizer], unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, _ = both
    counting = counted(tokenizer, monkeypatch)
    [tokens], [cut] = tokenizer.singles([huge(unit)], 64)
    assert cut and len(tokens) <= 64
    assert max(counting.calls) <= SLICE_CHARS
    assert sum(counting.calls) <= 1.3 * most_chars(64)


@pytest.mark.parametrize("unit", SHAPES.values(), ids=SHAPES)
def test_a_huge_text_is_read_in_slices(
    both: tuple[TextTokenizer, Tokenizer], unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, _ = both
    counting = counted(tokenizer, monkeypatch)
    monkeypatch.setattr(reading, "SLICE_CHARS", 4096)
    [found] = tokenizer.read([huge(unit)], 600)
    assert found.cut and len(found.ids) == len(found.spans) <= 600
    assert max(counting.calls) <= 4096
    assert sum(counting.calls) <= 2.2 * most_chars(600)


def long_texts() -> list[str]:
    rng = random.Random(3)

    def soup(alphabet: str, length: int, between: str) -> str:
        return between.join(
            "".join(rng.choice(alphabet) for _ in range(length)) for _ in range(20_000 // length)
        )

    return [
        random_text(rng, 4000),
        "\n\n".join(random_text(rng, 40) for _ in range(100)),
        "\n".join(" " * rng.randint(0, 40) + f"if x[{rng.randint(0, 999)}] == 7:" for _ in range(1000)),
        soup("東京大学の研究。", 20, ""),
        soup("กรุงเทพมหานคร", 70, " "),
        soup("abcdefghij0123456789+/", 76, "\n"),
        soup("0123456789", 1000, ", "),
        soup("😀👍🎉", 50, " "),
        soup("한국어연구", 4, " "),
    ]


def test_a_text_read_in_pieces_has_the_tokens_of_the_whole(
    both: tuple[TextTokenizer, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, plain = both
    counting = counted(tokenizer, monkeypatch)
    monkeypatch.setattr(reading, "SLICE_CHARS", 4096)
    for text in long_texts():
        whole = plain.encode(text, add_special_tokens=False)
        [found] = tokenizer.read([text], reading.ALL)
        assert max(counting.calls) <= 4096
        assert found.ids.tolist() == whole.ids, text[:40]
        assert found.spans.tolist() == [list(span) for span in whole.offsets]
        assert not found.cut


def test_a_word_longer_than_a_piece_is_read_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tokenizer = TextTokenizer(tokenizer_file(tmp_path, "bert"), token_types=False)
    monkeypatch.setattr(reading, "SLICE_CHARS", 4096)
    [found] = tokenizer.read(["k" * 20_000 + " rain falls"], reading.ALL)
    assert found.ids.tolist()[-2:] == tokenizer.read(["rain falls"], 9)[0].ids.tolist()
    assert found.spans[-1].tolist() == [20_006, 20_011]


@pytest.mark.parametrize(("blanks", "cut"), [(SLICE_CHARS - 4, False), (SLICE_CHARS - 3, True)])
def test_words_after_a_run_of_blanks_are_read_up_to_the_bound(tmp_path: Path, blanks: int, cut: bool) -> None:
    tokenizer = TextTokenizer(tokenizer_file(tmp_path, "bert"), token_types=False)
    [tokens], flags = tokenizer.singles([" " * blanks + "rain"], 64)
    assert flags == [cut] and len(tokens) == (2 if cut else 3)


# ── every kind ──

COLBERT = LateInteractionSpec(
    projections=(),
    dim=8,
    query_prompt="q: ",
    document_prompt="d: ",
    query_length=32,
    expand_to=0,
    attend_to_expansion=False,
    skip_words=(),
)
LIMIT = 320


def _pairs(directory: Path) -> tuple[TextInput, TextTokenizer]:
    tokenizer = PairTokenizer(tokenizer_file(directory, "bert"), "longest-first", token_types=True)
    return PairInput(tokenizer), tokenizer


def _late_interaction(directory: Path) -> tuple[TextInput, TextTokenizer]:
    tokenizer = TextTokenizer(tokenizer_file(directory, "xlm-roberta"), token_types=False)
    return LateInteractionInput(tokenizer, ModelDocuments(DocumentCache(2**20), "m", None)), tokenizer


def _colbert(directory: Path) -> tuple[TextInput, TextTokenizer]:
    tokenizer = TextTokenizer(tokenizer_file(directory, "bert"), token_types=False)
    return ColbertInput(COLBERT, tokenizer, directory, None), tokenizer


def _prompted(template: str) -> Callable[[Path], tuple[TextInput, TextTokenizer]]:
    def build(directory: Path) -> tuple[TextInput, TextTokenizer]:
        tokenizer = PromptTokenizer(tokenizer_file(directory, "qwen"), named_template(template))
        return PromptInput(tokenizer, share=False), tokenizer

    return build


def _listwise(directory: Path) -> tuple[TextInput, TextTokenizer]:
    plain = byte_level_tokenizer()
    plain.add_special_tokens([DOCUMENT_END, QUERY_END])
    plain.save(str(directory / "tokenizer.json"))
    tokenizer = ListwiseTokenizer(directory)
    return ListwiseInput(ListwiseSpec(query_length=64, block_length=4096), tokenizer), tokenizer


KINDS = {
    "pairs": _pairs,
    "late interaction": _late_interaction,
    "colbert": _colbert,
    "prompted, the document last": _prompted("qwen3-reranker"),
    "prompted, text after the document": _prompted("ctxl-rerank-v2"),
    "prompted, instruction beside the texts": _prompted("mxbai-rerank-v2"),
    "listwise": _listwise,
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("unit", [" ", "a", "\u0301", "😀", "<|im_start|>", DOCUMENT_END[:7]], ids=ascii)
def test_every_kind_bounds_query_and_documents(
    kind: Callable[[Path], tuple[TextInput, TextTokenizer]],
    unit: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts_input, tokenizer = kind(tmp_path)
    counting = counted(tokenizer, monkeypatch)
    texts = ScoreTexts(huge(unit), [huge(unit), "rain", huge(unit) + "b"], LIMIT)
    job = texts_input.score_job(texts)
    assert job.query_truncated and job.truncated == [True, False, True]
    # query and documents, some read a second time within the prompt, and the fixed texts
    assert sum(counting.calls) <= 2 * 1.3 * 3 * most_chars(LIMIT) + 20_000
    if isinstance(texts_input, ChunkInput):
        counting.calls.clear()
        chunked = texts_input.chunk_job(
            ScoreTexts("rain", [huge(unit)], LIMIT, None, Chunking(0, 2)), Chunking(0, 2)
        )
        assert chunked.truncated and all(chunked.truncated)
        assert sum(counting.calls) <= 2 * 2.2 * most_chars(2 * LIMIT)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_small_documents_share_slices(
    kind: Callable[[Path], tuple[TextInput, TextTokenizer]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts_input, tokenizer = kind(tmp_path)
    counting = counted(tokenizer, monkeypatch)
    texts_input.score_job(ScoreTexts("rain", ["rain falls over the harbour " * 40] * 300, LIMIT))
    assert max(counting.calls) <= SLICE_CHARS


@pytest.mark.parametrize("template", ["qwen3-reranker", "ctxl-rerank-v2", "mxbai-rerank-v2"])
def test_a_huge_instruction_is_refused_before_it_is_tokenised(
    template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts_input, tokenizer = _prompted(template)(tmp_path)
    counting = counted(tokenizer, monkeypatch)
    with pytest.raises(InvalidInput, match=r"400000 characters.* at most 65536 are read .*`\$\.instruction`"):
        texts_input.score_job(ScoreTexts("rain", ["x"], LIMIT, " " * HUGE))
    assert not counting.calls


def test_a_huge_instruction_of_a_listwise_reranker_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts_input, tokenizer = _listwise(tmp_path)
    counting = counted(tokenizer, monkeypatch)
    for instruction in ("prefer ", " ", DOCUMENT_END + "a"):
        counting.calls.clear()
        with pytest.raises(InvalidInput, match=r"and the instruction leave no room .*`\$\.instruction`"):
            texts_input.score_job(ScoreTexts("rain", ["x"], LIMIT, instruction * HUGE))
        assert sum(counting.calls) <= 3 * most_chars(4096)


# ── work outside the library ──


def test_nested_names_of_read_out_tokens_are_removed_in_one_pass() -> None:
    rng = random.Random(7)
    pieces = [DOCUMENT_END, QUERY_END, "<|embed", "_token|>", "<|rerank", "_tok", "en|>", ">", "a", "<|"]
    for _ in range(3000):
        text = "".join(rng.choice(pieces) for _ in range(rng.randint(0, 12)))
        expected = text
        while DOCUMENT_END in expected or QUERY_END in expected:
            expected = expected.replace(QUERY_END, "").replace(DOCUMENT_END, "")
        assert _without_marks(text) == expected
    deep = "<|embed_" * 50_000 + DOCUMENT_END + "token|>" * 50_000
    assert _without_marks(deep) == ""


def test_the_longest_start_is_found_anywhere() -> None:
    rng = random.Random(9)
    for _ in range(2000):
        start = [rng.randint(0, 2) for _ in range(rng.randint(0, 8))]
        ids = [rng.randint(0, 2) for _ in range(rng.randint(0, 12))]
        runs = [
            n
            for n in range(len(start) + 1)
            for at in range(len(ids) - n + 1)
            if ids[at : at + n] == start[:n]
        ]
        assert _longest_start(start, ids) == max(runs, default=0)


def test_a_cancelled_text_ends_before_its_next_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(BaseException):
        pass

    slices: list[int] = []

    def pace(characters: int) -> None:
        slices.append(characters)
        if len(slices) > 2:
            raise Gone

    texts_input, tokenizer = _pairs(tmp_path)
    counting = counted(tokenizer, monkeypatch)
    with pytest.raises(Gone), paced(pace):
        texts_input.score_job(ScoreTexts("rain", [huge("a ")] * 50, LIMIT))
    assert counting.calls == slices[:2]
    job: Job = texts_input.score_job(ScoreTexts("rain", ["x"], LIMIT))  # without a pace again
    assert job.work and len(slices) == 3
