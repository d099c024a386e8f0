"""The parts that a tokenizer class of transformers 5 builds itself instead of reading tokenizer.json.

The class decides which file wins. `TokenizersBackend` (PreTrainedTokenizerFast in version 4) uses tokenizer.json as it
is. The other classes take only the vocabulary, the added tokens and, some of them, the post-processor from it. They
build the normalizer and the pre-tokenizer from the settings in tokenizer_config.json and their own defaults.

Source: `TokenizersBackend.convert_to_native_format` in transformers/tokenization_utils_tokenizers.py, version 5.23, and
the modules `tokenization_*.py` of the classes below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.processors import RobertaProcessing, TemplateProcessing

from sie_server.engine.text.loading.files import TokenizerFiles

Token = tuple[str, int]  # text and id
# Qwen2's pattern between texts and tokens (transformers/models/qwen2/tokenization_qwen2.py)
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class TokenizerClass:
    """The parts that a class of transformers builds itself."""

    model: str  # the type of the vocabulary model: WordPiece, BPE or Unigram
    pipeline: Callable[[Tokenizer, TokenizerFiles], None]  # sets the normalizer and the pre-tokenizer
    tokens: Mapping[str, str | None]  # the default of each named special token
    vocabulary: tuple[str, ...]  # the files without tokenizer.json
    # parameters of the vocabulary model, by their name in tokenizer.json; a name with `_token` names a special token
    parameters: Mapping[str, Any] = field(default_factory=dict)
    # the post-processor of the special tokens; None: that of tokenizer.json, else bos and eos where settings add them
    frame: Callable[[Token, Token, TokenizerFiles], Any] | None = None
    frame_tokens: tuple[str, str] = ("cls_token", "sep_token")  # the tokens that `frame` takes
    left_space: frozenset[str] = frozenset()  # named tokens that include the space before them
    plain_tokens: bool = False  # special tokens lose the flags that the settings give them


def steps_of(normalizer: Any) -> list[Any]:
    """Return the steps of a normalizer; none for None."""
    if isinstance(normalizer, normalizers.Sequence):
        sequence: Any = normalizer  # the library's types do not say that it can be iterated
        return list(sequence)
    return [] if normalizer is None else [normalizer]


def _bert(tokenizer: Tokenizer, files: TokenizerFiles) -> None:
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(files.flag("tokenize_chinese_chars", True)),
        strip_accents=files.flag("strip_accents", None),
        lowercase=bool(files.flag("do_lower_case", True)),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()


def _byte_level(tokenizer: Tokenizer, files: TokenizerFiles) -> None:
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=bool(files.flag("add_prefix_space", False))
    )


def _sentencepiece(tokenizer: Tokenizer, files: TokenizerFiles) -> None:
    """Keep the table of characters of the normalizer, and drop its other steps."""
    steps = steps_of(tokenizer.normalizer)
    tokenizer.normalizer = next((s for s in steps if isinstance(s, normalizers.Precompiled)), None)
    scheme = "always" if files.flag("add_prefix_space", True) else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)]
    )


def _gemma(tokenizer: Tokenizer, files: TokenizerFiles) -> None:
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")


def _llama(tokenizer: Tokenizer, files: TokenizerFiles) -> None:
    space = files.flag("add_prefix_space", None)
    scheme = "always" if files.flag("legacy", False) else "first"
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement="▁", prepend_scheme="never" if space is False else scheme, split=False
    )


def _qwen2(tokenizer: Tokenizer, files: TokenizerFiles) -> None:
    space = bool(files.flag("add_prefix_space", None))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=space, use_regex=False),
        ]
    )


def _bert_frame(cls: Token, sep: Token, files: TokenizerFiles) -> TemplateProcessing:
    return TemplateProcessing(
        single=[f"{cls[0]}:0", "$A:0", f"{sep[0]}:0"],
        pair=[f"{cls[0]}:0", "$A:0", f"{sep[0]}:0", "$B:1", f"{sep[0]}:1"],
        special_tokens=[cls, sep],
    )


def _roberta_frame(cls: Token, sep: Token, files: TokenizerFiles) -> RobertaProcessing:
    space, trim = files.flag("add_prefix_space", False), files.flag("trim_offsets", True)
    return RobertaProcessing(sep, cls, trim_offsets=bool(trim), add_prefix_space=bool(space))


def _mpnet_frame(cls: Token, sep: Token, files: TokenizerFiles) -> RobertaProcessing:
    return RobertaProcessing(sep, cls, trim_offsets=True, add_prefix_space=False)


def _xlm_roberta_frame(bos: Token, eos: Token, files: TokenizerFiles) -> TemplateProcessing:
    return TemplateProcessing(
        single=[bos[0], "$A", eos[0]],
        pair=[bos[0], "$A", eos[0], eos[0], "$B", eos[0]],
        special_tokens=[bos, eos],
    )


def _tokens(
    bos: str | None, eos: str | None, unk: str, pad: str | None, **more: str
) -> dict[str, str | None]:
    return {"bos_token": bos, "eos_token": eos, "unk_token": unk, "pad_token": pad, **more}


BRACKETS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
ANGLES = _tokens("<s>", "</s>", "<unk>", "<pad>", sep_token="</s>", cls_token="<s>", mask_token="<mask>")
END = "<|endoftext|>"
WORD_PIECE = {"unk_token": "unk_token", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
BPE = {
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}
VOCAB_AND_MERGES = ("vocab.json", "merges.txt")

REBUILT: Mapping[str, TokenizerClass] = MappingProxyType(
    {
        "BertTokenizer": TokenizerClass(
            "WordPiece", _bert, BRACKETS, ("vocab.txt",), WORD_PIECE, frame=_bert_frame
        ),
        "GPT2Tokenizer": TokenizerClass(
            "BPE", _byte_level, _tokens(END, END, END, None), VOCAB_AND_MERGES, BPE
        ),
        "GemmaTokenizer": TokenizerClass(
            "BPE",
            _gemma,
            _tokens("<bos>", "<eos>", "<unk>", "<pad>", mask_token="<mask>"),
            (),
            BPE | {"unk_token": "unk_token", "fuse_unk": True, "byte_fallback": True},
        ),
        "LlamaTokenizer": TokenizerClass(
            "BPE",
            _llama,
            _tokens("<s>", "</s>", "<unk>", None),
            (),
            BPE | {"fuse_unk": True, "byte_fallback": True},
        ),
        "MPNetTokenizer": TokenizerClass(
            "WordPiece",
            _bert,
            ANGLES | {"unk_token": "[UNK]"},
            ("vocab.txt",),
            WORD_PIECE,
            frame=_mpnet_frame,
            left_space=frozenset({"mask_token"}),
        ),
        "Qwen2Tokenizer": TokenizerClass(
            "BPE", _qwen2, _tokens(None, END, END, END), VOCAB_AND_MERGES, BPE, plain_tokens=True
        ),
        "RobertaTokenizer": TokenizerClass(
            "BPE", _byte_level, ANGLES, VOCAB_AND_MERGES, BPE, frame=_roberta_frame
        ),
        "XLMRobertaTokenizer": TokenizerClass(
            "Unigram",
            _sentencepiece,
            ANGLES,
            (),
            {"unk_id": 3, "byte_fallback": False},
            frame=_xlm_roberta_frame,
            frame_tokens=("bos_token", "eos_token"),
        ),
    }
)
