"""LoRA adapters: fp32 results equal those of `peft` for every family, alone and mixed in one batch."""

from __future__ import annotations

import hashlib
import json
import random
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from sie_server.engine.document_cache import DocumentCache, ModelDocuments
from sie_server.engine.engine import Engine
from sie_server.engine.job import Job, ScoreTexts
from sie_server.engine.lora import patterns
from sie_server.engine.lora.adapter import Adapter
from sie_server.engine.lora.config import read_lora_config
from sie_server.errors import ModelLoadFailed
from sie_server.models.layers.linear import LayerNorm, Linear
from support.checkpoints.colbert import make_pylate, make_stanford
from support.checkpoints.cross_encoders import FAMILIES, make_cross_encoder, random_text
from support.checkpoints.decoders import DECODERS, make_decoder
from support.checkpoints.encoders import make_encoder, make_splade
from support.checkpoints.library import make_library_classifier
from support.device import DEVICE
from support.families.adapters import make_adapter, under, write_adapter
from support.requests.jobs import read_pairs

LIMIT, TOLERANCE = 96, 1e-4
QUERY = "why do stars burn hydrogen"
TARGETS = {"modernbert": ["Wqkv", "Wi"], "modernbert-mean": ["Wqkv", "Wo"]}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 8},
    "rslora, all linear": {"r": 2, "lora_alpha": 3, "use_rslora": True, "target_modules": "all-linear"},
    "patterns": {
        "r": 4,
        "target_modules": "all-linear",
        "rank_pattern": {r"layers?\.0\..*": 2, r"layers?\.1\..*": 3},
        "alpha_pattern": {r"layers?\.[12]\..*": 1.5},
    },
    "head and biases": {"r": 4, "target_modules": "all-linear", "task_type": "SEQ_CLS", "bias": "lora_only"},
    "all biases": {"r": 3, "bias": "all"},
    "some layers": {"r": 3, "layers_to_transform": [0, 2]},
}


@dataclass
class Case:
    family: str
    directory: Path
    engine: Engine
    documents: list[str]


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp(request.param), request.param)


def make_case(directory: Path, family: str) -> Case:
    make_cross_encoder(directory, family, max_length=LIMIT)
    rng = random.Random(4)
    documents = [random_text(rng, n) for n in [*range(20), 60, 90, 130]]
    return Case(family, directory, Engine(directory, device=DEVICE, dtype="float32"), documents)


def classifier(directory: Path) -> Any:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32)
    return model.eval()


def adapter_of(case: Case, directory: Path, seed: int = 0, **settings: Any) -> Path:
    config = {"r": 4, "target_modules": TARGETS.get(case.family, ["query", "value", "dense"])} | settings
    return make_adapter(classifier(case.directory), directory, seed=seed, **config)


@torch.inference_mode()
def expected_logits(case: Case, adapter: Path | None) -> torch.Tensor:
    tokenizer = transformers.AutoTokenizer.from_pretrained(case.directory)
    encoded = read_pairs(tokenizer, QUERY, case.documents, LIMIT)
    model = classifier(case.directory)
    logits: torch.Tensor = (under(model, adapter) if adapter else model)(**encoded).logits[:, 0]
    return logits


def results(engine: Engine, *jobs: Job) -> list[list[Any]]:
    """Run all jobs in one batch, with their works interleaved and queries first."""
    works = sorted(chain.from_iterable(job.work for job in jobs), key=lambda work: work.index)
    for work, result in zip(works, engine.run(works), strict=True):
        if work.index >= 0:
            work.job.put(work.index, result)
    return [job.results for job in jobs]


def logits(engine: Engine, documents: list[str], adapter: Adapter | None = None) -> torch.Tensor:
    [scores] = results(engine, engine.tokenize_score(ScoreTexts(QUERY, documents, LIMIT), adapter=adapter))
    return torch.tensor(scores)


def assert_close(ours: Any, expected: Any, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(torch.as_tensor(ours), torch.as_tensor(expected), atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", SETTINGS)
def test_logits_equal_peft(case: Case, tmp_path: Path, name: str) -> None:
    directory = adapter_of(case, tmp_path, **SETTINGS[name])
    expected = expected_logits(case, directory)
    assert (expected - expected_logits(case, None)).abs().mean() > 0.05
    adapter = case.engine.attach(directory)
    assert_close(logits(case.engine, case.documents, adapter), expected)
    assert case.engine.adapter_bytes(directory) == adapter.nbytes  # known before the weights are read


def test_a_retrained_head_is_replaced_as_a_whole(case: Case, tmp_path: Path) -> None:
    module = {"bert": "pooler", "modernbert": "head", "modernbert-mean": "head"}.get(
        case.family, "classifier"
    )
    directory = adapter_of(case, tmp_path, modules_to_save=[module, "classifier"])
    adapter = case.engine.attach(directory)
    assert_close(logits(case.engine, case.documents, adapter), expected_logits(case, directory))
    assert case.engine.adapter_bytes(directory) == adapter.nbytes


def four_adapters(case: Case, root: Path) -> list[Adapter | None]:
    names = ["plain", "rslora, all linear", "head and biases", "all biases"]
    made = [adapter_of(case, root / name, seed=i, **SETTINGS[name]) for i, name in enumerate(names)]
    return [None, *(case.engine.attach(directory) for directory in made)]


def test_a_mixed_batch_equals_each_alone(case: Case, tmp_path: Path) -> None:
    adapters = four_adapters(case, tmp_path)
    alone = [logits(case.engine, case.documents, adapter) for adapter in adapters]
    jobs = [case.engine.tokenize_score(ScoreTexts(QUERY, case.documents, LIMIT), adapter=a) for a in adapters]
    for together, expected in zip(results(case.engine, *jobs), alone, strict=True):
        assert_close(together, expected)
    for one, other in pairwise(alone):
        assert (one - other).abs().mean() > 0.05


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_base_weights_stay_as_they_are(tmp_path: Path, dtype: str) -> None:
    """They stay equal bit for bit over 100 mixed requests, also in oneDNN's packed layout."""
    case = make_case(tmp_path / "model", "bert")
    case.engine = Engine(case.directory, device=DEVICE, dtype=dtype)
    before_logits, documents = logits(case.engine, case.documents), case.documents[:3]
    adapters = four_adapters(case, tmp_path)
    before = fingerprint(case.engine)
    for i in range(100):
        a, b = adapters[i % 5], adapters[(i * 3 + 1) % 5]
        jobs = [case.engine.tokenize_score(ScoreTexts(QUERY, documents, LIMIT), adapter=x) for x in (a, b)]
        results(case.engine, *jobs)
    assert fingerprint(case.engine) == before
    assert torch.equal(logits(case.engine, case.documents), before_logits)


def fingerprint(engine: Engine) -> dict[str, str]:
    """Return module and tensor → hash of every weight that adapters can target."""
    found = {}
    for name, target in engine._targets.items():
        layer = target.layer
        assert isinstance(layer, Linear | LayerNorm)
        weight = layer.plain_weight() if isinstance(layer, Linear) else layer.weight
        for kind, tensor in (("weight", weight), ("bias", layer.bias)):
            if tensor is not None:
                content = tensor.contiguous().view(torch.uint8).numpy().tobytes()
                found[f"{name}.{kind}"] = hashlib.sha256(content).hexdigest()
    assert len(found) > 40
    return found


def test_bf16_ranks_as_fp32(case: Case, tmp_path: Path) -> None:
    from scipy.stats import kendalltau

    directory = adapter_of(case, tmp_path, target_modules="all-linear", r=2, lora_alpha=1)
    coarse = Engine(case.directory, device=DEVICE, dtype="bfloat16")
    exact = logits(case.engine, case.documents, case.engine.attach(directory))
    # this first run packs the weights if the processor has fast bf16 products
    logits(coarse, case.documents[:1])
    rough = logits(coarse, case.documents, coarse.attach(directory))
    assert kendalltau(rough, exact).statistic >= 0.8


# ── decoders ──


@pytest.mark.parametrize("family", sorted(DECODERS))
def test_decoders_equal_peft_with_a_shared_start(family: str, tmp_path: Path) -> None:
    directory = make_decoder(tmp_path / "model", family)
    template = DECODERS[family][3]
    load = transformers.AutoModelForCausalLM.from_pretrained
    made = [
        make_adapter(load(directory, dtype=torch.float32), tmp_path / str(i), seed=i, scale=0.1, **settings)
        for i, settings in enumerate(
            [
                {"r": 3, "target_modules": "all-linear", "use_rslora": True},
                {"r": 2, "target_modules": ["q_proj", "v_proj", "up_proj", "lm_head"]},
            ]
        )
    ]
    engine = Engine(directory, device=DEVICE, dtype="float32", template=template)
    adapters = [None, *(engine.attach(path) for path in made)]
    rng = random.Random(2)
    documents = [random_text(rng, n) for n in (1, 3, 8, 15, 30)]
    jobs = [engine.tokenize_score(ScoreTexts(QUERY, documents, 400), adapter=adapter) for adapter in adapters]
    assert all(job.prefix for job in jobs)
    ours = results(engine, *jobs)
    whole = engine.tokenize_plain(ScoreTexts(QUERY, documents, 400))
    sequences = {work.index: torch.from_numpy(work.tokens.ids).long()[None] for work in whole.work}
    answers = engine._tokenizer.answers  # type: ignore[attr-defined]  # a causal reranker's
    for path, scores in zip([None, *made], ours, strict=True):
        model = load(directory, dtype=torch.float32).eval()
        model = under(model, path) if path else model
        with torch.inference_mode():
            rows = [model(input_ids=sequences[i]).logits[0, -1, answers] for i in range(len(documents))]
        expected = [float(row[0] - row[1]) if len(row) == 2 else float(row[0]) for row in rows]
        assert_close(scores, expected, 1e-3)
    assert min((torch.tensor(a) - torch.tensor(b)).abs().mean() for a, b in pairwise(ours)) > 0.01


def test_a_retrained_output_matrix_is_read_at_its_answers(tmp_path: Path) -> None:
    directory = make_decoder(tmp_path / "model", "qwen2")
    load = transformers.AutoModelForCausalLM.from_pretrained
    path = make_adapter(
        load(directory), tmp_path / "adapter", r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]
    )
    engine = Engine(directory, device=DEVICE, dtype="float32", template="mxbai-rerank-v2")
    job = engine.tokenize_score(ScoreTexts(QUERY, ["rain", "stars burn"], 400), adapter=engine.attach(path))
    whole = engine.tokenize_plain(ScoreTexts(QUERY, ["rain", "stars burn"], 400))
    model = under(load(directory).eval(), path)
    [scores] = results(engine, job)
    for work in whole.work:
        with torch.inference_mode():
            row = model(input_ids=torch.from_numpy(work.tokens.ids).long()[None]).logits[0, -1]
        yes, no = engine._tokenizer.answers  # type: ignore[attr-defined]  # a causal reranker's
        assert abs(scores[work.index] - float(row[yes] - row[no])) <= 1e-3


# ── vectors ──


def vectors(engine: Engine, texts: list[str], output: str, *adapters: Adapter | None) -> list[Any]:
    jobs = [engine.tokenize_encode(texts, (output,), LIMIT, adapter=adapter) for adapter in adapters]
    return [[row[output] for row in rows] for rows in results(engine, *jobs)]


def test_embeddings_equal_peft_in_sentence_transformers(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    directory = make_encoder(tmp_path / "model")
    model = transformers.AutoModel.from_pretrained(directory)  # with an unused pooler
    path = make_adapter(model, tmp_path / "adapter", r=3, target_modules="all-linear")
    engine = Engine(directory, device=DEVICE, dtype="float32")
    texts = ["stars", "rain falls over the quiet harbour", "why do lawyers argue"]
    library = SentenceTransformer(str(directory), device="cpu")
    base = library.encode(texts)
    library[0].auto_model = under(library[0].auto_model, path)
    expected = library.encode(texts)
    plain, ours = vectors(engine, texts, "dense", None, engine.attach(path))
    assert_close(plain, base)
    assert_close(ours, expected)
    assert abs(base - expected).mean() > 0.01


def test_sparse_vectors_equal_peft(tmp_path: Path) -> None:
    directory = make_splade(tmp_path / "model")
    load = transformers.AutoModelForMaskedLM.from_pretrained
    path = make_adapter(
        load(directory), tmp_path / "adapter", r=3, target_modules=["query", "dense"], scale=0.1
    )
    engine = Engine(directory, device=DEVICE, dtype="float32")
    texts = ["stars", "rain falls over the quiet harbour"]
    _, ours = vectors(engine, texts, "sparse", None, engine.attach(path))
    model, tokenizer = (
        under(load(directory).eval(), path),
        transformers.AutoTokenizer.from_pretrained(directory),
    )
    for text, sparse in zip(texts, ours, strict=True):
        with torch.inference_mode():
            state = model(**tokenizer(text, return_tensors="pt")).logits[0]
        expected = torch.log1p(torch.relu(state)).amax(0)
        full = torch.zeros_like(expected)
        full[torch.from_numpy(sparse.indices).long()] = torch.from_numpy(sparse.values)
        assert_close(full, expected)


@pytest.mark.parametrize("family", ["bert", "modernbert", "xlm-roberta"])
def test_colbert_vectors_equal_peft(tmp_path: Path, family: str) -> None:
    directory = make_pylate(tmp_path / "model", family)
    load = transformers.AutoModel.from_pretrained
    path = make_adapter(load(directory), tmp_path / "adapter", r=3, target_modules="all-linear")
    engine = Engine(directory, device=DEVICE, dtype="float32")
    texts = ["stars", "rain falls over the quiet harbour"]
    plain, ours = vectors(engine, texts, "multivector", None, engine.attach(path))
    job = engine.tokenize_encode(texts, ("multivector",), LIMIT)
    projection = load_file(directory / "1_Dense" / "model.safetensors")["linear.weight"]
    model = under(load(directory).eval(), path)
    for work in job.work:
        ids = torch.from_numpy(work.tokens.ids).long()[None]
        with torch.inference_mode():
            hidden = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
        expected = torch.nn.functional.normalize(hidden @ projection.T, dim=-1)
        assert_close(ours[work.index], expected)
        assert (torch.from_numpy(plain[work.index]) - expected).abs().mean() > 0.01


def test_the_projection_of_a_stanford_checkpoint_can_be_changed(tmp_path: Path) -> None:
    """No library has its class, so the test writes the adapter and compares it with the merged checkpoint."""
    directory = make_stanford(tmp_path / "model", "bert", {"dim": 24})
    load, merged = load_file(directory / "model.safetensors"), tmp_path / "merged"
    a, b = torch.randn(2, 48), torch.randn(24, 2)
    path = write_adapter(tmp_path / "adapter", 2, 6, {"linear": (a, b)})
    merged.mkdir()
    for file in directory.iterdir():
        (merged / file.name).write_bytes(file.read_bytes())
    save_file(load | {"linear.weight": load["linear.weight"] + 3 * b @ a}, merged / "model.safetensors")
    engine, other = (Engine(d, device=DEVICE, dtype="float32") for d in (directory, merged))
    texts = ["stars", "rain falls, over the quiet harbour"]
    [ours], [expected] = (
        vectors(engine, texts, "multivector", engine.attach(path)),
        vectors(other, texts, "multivector", None),
    )
    for mine, theirs in zip(ours, expected, strict=True):
        assert_close(mine, theirs)


def test_cached_documents_belong_to_their_adapter(tmp_path: Path) -> None:
    directory = make_pylate(tmp_path / "model", "bert")
    load = transformers.AutoModel.from_pretrained
    path = make_adapter(load(directory), tmp_path / "adapter", r=3, target_modules="all-linear")
    cache = DocumentCache(1 << 20)
    engine = Engine(directory, device=DEVICE, dtype="float32", documents=ModelDocuments(cache, "m", None))
    plain = Engine(directory, device=DEVICE, dtype="float32")
    texts = ["rain falls over the quiet harbour", "stars"]
    first, second = engine.attach(path), plain.attach(path)
    [base] = results(engine, engine.tokenize_score(ScoreTexts(QUERY, texts, LIMIT)))
    job = engine.tokenize_score(ScoreTexts(QUERY, texts, LIMIT), adapter=first)
    assert not job.known  # cached documents of the base model do not count
    [changed] = results(engine, job)
    [expected] = results(plain, plain.tokenize_score(ScoreTexts(QUERY, texts, LIMIT), adapter=second))
    assert_close(changed, expected)
    assert max(abs(a - b) for a, b in zip(base, changed, strict=True)) > 0.05
    again = engine.tokenize_score(ScoreTexts(QUERY, texts, LIMIT), adapter=first)
    assert len(again.known) == 2
    results(engine, again)
    engine.score_known(again)
    assert_close(again.results, changed)
    engine.detach(first)
    assert len(engine.tokenize_score(ScoreTexts(QUERY, texts, LIMIT)).known) == 2
    assert not engine.tokenize_score(ScoreTexts(QUERY, texts, LIMIT), adapter=first).known
    assert engine.documents
    engine.documents.forget()
    assert cache.nbytes == 0


# ── what is refused ──


def edited(directory: Path, config: dict[str, Any] | None = None, change: Any = None) -> Path:
    """Change an adapter's configuration, or apply a function to its tensors."""
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | (config or {})))
    if change:
        tensors = load_file(directory / "adapter_model.safetensors")
        change(tensors)
        save_file(tensors, directory / "adapter_model.safetensors")
    return directory


QUERY_0 = "base_model.model.bert.encoder.layer.0.attention.self.query"


def drop(name: str) -> Any:
    return lambda tensors: tensors.pop(name)


def put(name: str, *shape: int) -> Any:
    return lambda tensors: tensors.update({name: torch.ones(shape)})


REFUSED: dict[str, tuple[dict[str, Any], Any, str]] = {
    "kind": ({"peft_type": "LOHA"}, None, "peft_type is 'LOHA'"),
    "dora": ({"use_dora": True}, None, "use_dora"),
    "start": ({"init_lora_weights": "pissa"}, None, "init_lora_weights is 'pissa'"),
    "transposed": ({"fan_in_fan_out": True}, None, "fan_in_fan_out"),
    "replication": ({"layer_replication": [[0, 2], [1, 3]]}, None, "layer_replication"),
    "tokens": ({"trainable_token_indices": [1]}, None, "trainable_token_indices"),
    "bias of B": ({"lora_bias": True}, None, "lora_bias"),
    "unknown field": ({"from_the_future": 1}, None, "from_the_future is 1"),
    "unknown bias": ({"bias": "some"}, None, "bias is 'some'"),
    "rank": ({"r": 8}, None, "has shape"),
    "no rank": ({"r": 0}, None, "an integer above 0"),
    "pattern": (
        {"rank_pattern": {"(": 2}},
        None,
        "the pattern '(' in rank_pattern is not a regular expression",
    ),
    "flags in the middle": (
        {"alpha_pattern": {"(?i)query": 2}},
        None,
        "'(?i)query' in alpha_pattern is not a regular",
    ),
    "flags in the middle of a name": (
        {"modules_to_save": ["(?i)x"]},
        None,
        "'(?i)x' in modules_to_save is not",
    ),
    "the group with a layer's number": (
        {"layers_to_transform": [0], "layers_pattern": "(?P<idx>layer)"},
        None,
        "'(?P<idx>layer)' in layers_pattern is not a regular expression",
    ),
    "a count of 11 digits": (
        {"target_modules": "a{99999999999}"},
        None,
        "in target_modules is not supported: braces",
    ),
    "a count that fills the memory": ({"target_modules": "(||){99999}"}, None, "characters with its counts"),
    "nested counts": ({"exclude_modules": "((a{99}){99}){99}"}, None, "in exclude_modules is longer than"),
    "nested too deeply": (
        {"target_modules": "(" * 2000 + ")" * 2000},
        None,
        "in target_modules is nested too deeply",
    ),
    "layers by name": ({"layers_to_transform": ["first"]}, None, "layers_to_transform is ['first']"),
    "layers that are a word": ({"layers_to_transform": "0"}, None, "layers_to_transform is '0'"),
    "targets by number": ({"target_modules": [1]}, None, "target_modules is [1]"),
    "alpha that is no number": ({"lora_alpha": float("nan")}, None, "lora_alpha is nan"),
    "endless alpha": (
        {"lora_alpha": float("inf")},
        None,
        "lora_alpha is inf; expected a finite number",
    ),
    "alpha of 400 digits": ({"lora_alpha": 10**400}, None, "an alpha must be a finite number"),
    "alpha of a pattern": ({"alpha_pattern": {"query": float("nan")}}, None, "alpha_pattern.query is nan"),
    "alpha too large for B": ({"lora_alpha": 1e300}, None, "lora_alpha or alpha_pattern scale lora_B of"),
    "other base": ({"base_model_name_or_path": "someone/else"}, None, "trained on 'someone/else'"),
    "target without tensors": ({"target_modules": ["query", "key"]}, None, "lacks lora_A of"),
    "tensors without target": ({"target_modules": ["value"]}, None, "not one of its target_modules"),
    "excluded": ({"exclude_modules": ["query"]}, None, "not one of its target_modules"),
    "half a pair": ({}, drop(f"{QUERY_0}.lora_B.weight"), "lacks lora_B of"),
    "shape": ({}, put(f"{QUERY_0}.lora_A.weight", 4, 64), "trained on another base"),
    "unknown module": (
        {},
        put("base_model.model.bert.pooler.query.lora_A.weight", 4, 48),
        "bert.pooler.query",
    ),
    "embedding": (
        {},
        put("base_model.model.bert.embeddings.word_embeddings.lora_embedding_A", 4, 9),
        "embedding_A",
    ),
    "retrained embedding": (
        {"modules_to_save": ["word_embeddings"]},
        put("base_model.model.bert.embeddings.word_embeddings.weight", 9, 48),
        "cannot be replaced per sequence",
    ),
    "unannounced head": (
        {},
        put("base_model.model.classifier.weight", 1, 48),
        "neither modules_to_save nor bias",
    ),
    "half a head": (
        {"modules_to_save": ["classifier"]},
        put("base_model.model.classifier.weight", 1, 48),
        "lacks bias of 'classifier'",
    ),
    "magnitude": ({}, put(f"{QUERY_0}.lora_magnitude_vector", 48), "lora_magnitude_vector"),
    "another's name": ({}, put("model.query.lora_A.weight", 4, 48), "does not have a PEFT name"),
    "whole numbers": (
        {},
        lambda tensors: tensors.update({f"{QUERY_0}.lora_A.weight": torch.ones(4, 48, dtype=torch.int32)}),
        f"{QUERY_0}.lora_A.weight' has dtype torch.int32",
    ),
    "no rows": ({}, put(f"{QUERY_0}.lora_A.weight", 0, 48), "query.lora_A.weight' has shape [0, 48]"),
    "not finite": (
        {},
        lambda tensors: tensors[f"{QUERY_0}.lora_A.weight"].fill_(float("nan")),
        "not finite",
    ),
    "other weights": ({}, put(f"{QUERY_0}.base_layer.weight", 48, 48), "trained on another base"),
    "nothing": ({"target_modules": []}, lambda tensors: tensors.clear(), "changes nothing"),
}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("bert"), "bert")


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_adapters_are_refused_and_named(bert: Case, tmp_path: Path, name: str) -> None:
    config, change, message = REFUSED[name]
    directory = adapter_of(bert, tmp_path, target_modules=["query"])
    bert.engine.attach(directory, ["our/base"])  # the unchanged adapter is accepted
    with pytest.raises(ModelLoadFailed, match="cannot load the adapter") as refusal:
        bert.engine.attach(edited(directory, config, change), ["our/base"])
    assert message in refusal.value.message


EXPRESSIONS: dict[str, dict[str, Any]] = {
    "a whole name": {"target_modules": r"(?i).*LAYER\.(?=[02]\.)(?!.*output).*\.(query|dense)"},
    "groups before a layer": {
        "target_modules": ["query"],
        "layers_to_transform": [0, 2],
        "layers_pattern": ["nothing", "(?P<index>layers?)"],
    },
    "all but": {"target_modules": ["query", "value"], "exclude_modules": r".*\.[1-9]{1,3}\.\w+\.self\.query"},
    "a rank per module": {
        "target_modules": ["query", "value"],
        "rank_pattern": {r"1\.attention\.self\.(query|key)": 2, r"\d\..*(?<=value)": 3},
        "alpha_pattern": {"query": 5},
    },
    "a head by expression": {"target_modules": ["query"], "modules_to_save": ["class.f.er"]},
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_expressions_match_the_modules_that_peft_matches(bert: Case, tmp_path: Path, name: str) -> None:
    expected, given = dict(EXPRESSIONS[name]), dict(EXPRESSIONS[name])
    saved = given.pop("modules_to_save", None)  # PEFT writes names but reads expressions
    directory = adapter_of(bert, tmp_path, **(given | ({"modules_to_save": ["classifier"]} if saved else {})))
    edited(directory, expected)
    assert_close(
        logits(bert.engine, bert.documents, bert.engine.attach(directory)), expected_logits(bert, directory)
    )


COSTLY = "(?:(.)|(.)(.)|(.)(.)(.))*[!?]"
SLOW: dict[str, dict[str, Any]] = {
    "target_modules": {"target_modules": COSTLY},
    "exclude_modules": {"exclude_modules": COSTLY},
    "rank_pattern": {"rank_pattern": {COSTLY: 2}},
    "alpha_pattern": {"alpha_pattern": {COSTLY: 2}},
    "modules_to_save": {"modules_to_save": [COSTLY]},
    "layers_pattern": {"layers_to_transform": [0], "layers_pattern": [COSTLY]},
}


@pytest.mark.parametrize("field", SLOW)
def test_an_expression_that_takes_too_long_is_refused_without_blocking(
    bert: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    monkeypatch.setattr(patterns, "LIMIT_S", 0.5)
    directory = edited(adapter_of(bert, tmp_path, target_modules=["query"]), SLOW[field])
    with ThreadPoolExecutor(1) as pool:
        attaching, beats = pool.submit(bert.engine.attach, directory), 0
        while not wait([attaching], timeout=0.01).done:
            beats += 1
    assert beats >= 10
    with pytest.raises(ModelLoadFailed, match=rf"in {field} takes more than 0.5 s") as refusal:
        attaching.result()
    assert repr(COSTLY) in refusal.value.message


def test_a_rank_for_each_of_many_modules_is_read_in_time(tmp_path: Path) -> None:
    """EVA writes full names, and each module is compared with all of them up to its own."""
    names = [f"model.layers.{layer}.self_attn.{part}_proj" for layer in range(64) for part in "qkvougd"]
    fields = {"peft_type": "LORA", "rank_pattern": dict.fromkeys(names, 2), "alpha_pattern": {names[-1]: 5.0}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(fields))
    config = read_lora_config(tmp_path)
    assert {config.rank_of(name) for name in names} == {2}
    assert {config.scale_of(name) for name in names} == {4.0, 2.5}


def test_tensors_of_8_bits_are_read(bert: Case, tmp_path: Path) -> None:
    directory = adapter_of(bert, tmp_path)

    def as_dtype(dtype: torch.dtype) -> torch.Tensor:
        edited(directory, change=lambda tensors: tensors.update({n: t.to(dtype) for n, t in tensors.items()}))
        return logits(bert.engine, bert.documents, bert.engine.attach(directory))

    coarse = as_dtype(torch.float8_e4m3fn)
    assert torch.equal(as_dtype(torch.float32), coarse)


ODD: dict[str, tuple[Any, str]] = {
    "sparse": (torch.ones(4, 48).to_sparse(), "as a sparse or nested tensor"),
    "meta": (torch.empty(4, 48, device="meta"), "without values"),
    "nested": (torch.nested.nested_tensor([torch.ones(2)]), "as a sparse or nested tensor"),
    "complex": (torch.ones(4, 48, dtype=torch.complex64), "as torch.complex64"),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_tensors_of_a_bin_are_refused_and_named(bert: Case, tmp_path: Path, kind: str) -> None:
    directory, (tensor, message) = adapter_of(bert, tmp_path), ODD[kind]
    (directory / "adapter_model.safetensors").unlink()
    torch.save({f"{QUERY_0}.lora_A.weight": tensor}, directory / "adapter_model.bin")
    with pytest.raises(ModelLoadFailed, match=rf"lora_A\.weight' .*{message}"):
        bert.engine.attach(directory)


@pytest.mark.parametrize("name", [2, "\ud800"])
def test_a_bin_with_invalid_tensor_names_is_refused(bert: Case, tmp_path: Path, name: Any) -> None:
    directory = adapter_of(bert, tmp_path)
    (directory / "adapter_model.safetensors").unlink()
    torch.save({name: torch.ones(1)}, directory / "adapter_model.bin")
    with pytest.raises(ModelLoadFailed, match="table of names and tensors"):
        bert.engine.attach(directory)


def test_a_broken_file_is_refused(bert: Case, tmp_path: Path) -> None:
    directory = adapter_of(bert, tmp_path)
    path = directory / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelLoadFailed, match="truncated"):
        bert.engine.attach(directory)
    path.unlink()
    with pytest.raises(ModelLoadFailed, match=r"neither adapter_model\.safetensors nor adapter_model\.bin"):
        bert.engine.attach(directory)


def test_older_adapters_are_pickle_free_bins(bert: Case, tmp_path: Path) -> None:
    directory = adapter_of(bert, tmp_path)
    expected = logits(bert.engine, bert.documents, bert.engine.attach(directory))
    path = directory / "adapter_model.safetensors"
    torch.save(load_file(path), directory / "adapter_model.bin")
    path.unlink()
    adapter = bert.engine.attach(directory)
    assert torch.equal(logits(bert.engine, bert.documents, adapter), expected)
    fused = 2 * 48 + 2 * 3 * 48  # query and value; each B has the width of the fused projection
    layer = fused + (48 + 48) + (48 + 96) + (96 + 48)
    assert adapter.nbytes == 4 * 4 * (3 * layer + 48 + 48)  # rank 4 in fp32, including the pooler


def test_models_through_transformers_take_no_adapters(tmp_path: Path) -> None:
    directory = make_library_classifier(tmp_path / "model", "deberta-v2")
    with pytest.raises(ModelLoadFailed, match="runs through transformers, which cannot apply adapters"):
        Engine(directory, device=DEVICE).attach(tmp_path)
