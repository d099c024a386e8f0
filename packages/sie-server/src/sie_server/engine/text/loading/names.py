"""Which tokenizer class transformers 5 picks.

Source: `AutoTokenizer.from_pretrained` in transformers/models/auto/tokenization_auto.py, version 5.23.
"""

from __future__ import annotations

from sie_server.engine.text.loading.files import TokenizerFiles

GENERIC = {"TokenizersBackend", "PreTrainedTokenizerFast", "PythonBackend", "PreTrainedTokenizer"}
# The model types for which transformers registers a class; other types have the generic one.
MODEL_TYPES = {
    "AlbertTokenizer": "albert yoso",
    "BertTokenizer": "bert convbert distilbert electra ernie layoutlm megatron-bert mobilebert nomic_bert squeezebert",
    "BigBirdTokenizer": "big_bird",
    "CamembertTokenizer": "camembert",
    "CanineTokenizer": "canine",
    "DebertaTokenizer": "deberta",
    "DebertaV2Tokenizer": "deberta-v2",
    "EsmTokenizer": "esm",
    "EsmcTokenizer": "esmc",
    "FNetTokenizer": "fnet",
    "FlaubertTokenizer": "flaubert",
    "FunnelTokenizer": "funnel",
    "GPT2Tokenizer": "gpt2 gpt_neo gptj opt phi starcoder2",
    "GPTNeoXTokenizer": "gpt_neox mpt olmo",
    "GemmaTokenizer": "gemma gemma2 gemma3 gemma3_text t5gemma",
    "LayoutLMv2Tokenizer": "layoutlmv2",
    "LayoutLMv3Tokenizer": "layoutlmv3",
    "LukeTokenizer": "luke",
    "MBartTokenizer": "mbart",
    "MPNetTokenizer": "mpnet",
    "MarkupLMTokenizer": "markuplm",
    "OpenAIGPTTokenizer": "openai-gpt",
    "Qwen2Tokenizer": "qwen2 qwen2_moe qwen2_vl qwen3 qwen3_moe qwen3_next qwen3_vl",
    "Qwen3_5Tokenizer": "qwen3_5 qwen3_5_text",
    "ReformerTokenizer": "reformer",
    "RemBertTokenizer": "rembert",
    "RoFormerTokenizer": "roformer",
    "RobertaTokenizer": "bart data2vec-text ibert lilt longformer mra mvp roberta roberta-prelayernorm",
    "T5Tokenizer": "mt5 t5",
    # mistral's own package is never used
    "TokenizersBackend": (
        "bigbird_pegasus glm glm4 gpt_bigcode jamba minicpm3 ministral ministral3 mistral mixtral modernbert "
        "modernbert-decoder nemotron nystromformer olmo2 olmo3 persimmon phi3 phimoe stablelm umt5 xlm-roberta-xl"
    ),
    "XLMRobertaTokenizer": "gte jina_embeddings_v3 xlm-roberta xmod",
    "XLMTokenizer": "xlm",
    "XLNetTokenizer": "xlnet",
}
REGISTERED = {kind: name for name, kinds in MODEL_TYPES.items() for kind in kinds.split()}
# Model types whose files name a wrong class: the registered one is used.
MISNAMED = {"qwen2", "qwen3_5"}
# Class names that mean another class; see also `REBUILT`.
ALIASES = {
    "BartTokenizer": "RobertaTokenizer",
    "DistilBertTokenizer": "BertTokenizer",
    "ElectraTokenizer": "BertTokenizer",
    "LayoutLMTokenizer": "BertTokenizer",
    "LongformerTokenizer": "RobertaTokenizer",
    "LxmertTokenizer": "BertTokenizer",
    "MobileBertTokenizer": "BertTokenizer",
    "SqueezeBertTokenizer": "BertTokenizer",
}
# Classes that build their own pipeline and run only in transformers, with the extra `compat`
# fmt: off
THROUGH_TRANSFORMERS = frozenset(
    (
        "AlbertTokenizer", "BarthezTokenizer", "BertGenerationTokenizer", "BertJapaneseTokenizer",
        "BertweetTokenizer", "BigBirdTokenizer", "BlenderbotTokenizer", "BlenderbotSmallTokenizer",
        "CLIPTokenizer", "CamembertTokenizer", "CanineTokenizer", "CodeGenTokenizer", "CodeLlamaTokenizer",
        "CohereTokenizer", "ConvBertTokenizer", "DebertaTokenizer", "DebertaV2Tokenizer",
        "DPRQuestionEncoderTokenizer", "EsmTokenizer", "EsmcTokenizer", "FNetTokenizer", "FlaubertTokenizer",
        "FunnelTokenizer", "GPTNeoXTokenizer", "HerbertTokenizer", "LEDTokenizer", "LasrTokenizer",
        "LayoutLMv2Tokenizer", "LayoutLMv3Tokenizer", "LayoutXLMTokenizer", "LukeTokenizer", "M2M100Tokenizer",
        "MBartTokenizer", "MBart50Tokenizer", "MLukeTokenizer", "MarianTokenizer", "MarkupLMTokenizer",
        "MvpTokenizer", "NllbTokenizer", "OpenAIGPTTokenizer", "PegasusTokenizer", "PhobertTokenizer",
        "Qwen3_5Tokenizer", "ReformerTokenizer", "RemBertTokenizer", "RoFormerTokenizer",
        "SeamlessM4TTokenizer", "Siglip2Tokenizer", "SplinterTokenizer", "T5Tokenizer", "UdopTokenizer",
        "WhisperTokenizer", "XGLMTokenizer", "XLMTokenizer", "XLNetTokenizer",
    )
)
# fmt: on
# Classes whose models get token types, unless `model_input_names` says otherwise. Since version 5, the generic classes
# give them none.
TYPED = frozenset(
    (
        "BertTokenizer",
        "CanineTokenizer",
        "ConvBertTokenizer",
        "DPRQuestionEncoderTokenizer",
        "DebertaTokenizer",
        "DebertaV2Tokenizer",
        "FNetTokenizer",
        "LayoutLMv2Tokenizer",
        "MarkupLMTokenizer",
    )
)


def has_token_types(files: TokenizerFiles) -> bool:
    """Return whether the model gets token types: by `model_input_names`, else by the class."""
    names = files.own.get("model_input_names")
    if isinstance(names, list):
        return "token_type_ids" in names
    return class_name(files, byte_level=False) in TYPED


def class_name(files: TokenizerFiles, *, byte_level: bool) -> str:
    """Return the name of the class; `byte_level`: tokenizer.json works on bytes, as Llama 3's.

    The code of a repository (`auto_map`) is never loaded, so the class that is named next to it counts.
    """
    kind = files.config.get("model_type")
    registered = REGISTERED.get(kind) if isinstance(kind, str) else None
    declared = files.own.get("tokenizer_class") or files.config.get("tokenizer_class")
    if not isinstance(declared, str):
        return registered or "TokenizersBackend"
    name = _plain(declared)
    if files.own.get("auto_map"):
        return name
    if name == "LlamaTokenizer" and byte_level and kind not in MISNAMED:
        return "TokenizersBackend"
    if registered in GENERIC:
        return "TokenizersBackend"
    return registered if registered and kind in MISNAMED else name


def _plain(name: str) -> str:
    name = name if name in GENERIC else name.removesuffix("Fast")
    return ALIASES.get(name, name)
