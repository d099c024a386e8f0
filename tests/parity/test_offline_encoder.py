"""all-MiniLM-L6-v2 loads its real weights from the installed package, offline, and equals sentence-transformers."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from sie_server.catalog import catalog, entries
from support.servers.inprocess import asking, post

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
SENTENCES = """
Stars burn hydrogen into helium in their cores for billions of years.
Die Hauptstadt von Österreich heißt Wien, und dort fährt die Straßenbahn.
Le café était déjà fermé quand nous sommes arrivés à l'hôtel.
El niño comió una manzana mientras llovía en la montaña.
L'università più antica d'Europa si trova a Bologna.
Московское метро было открыто в тысяча девятьсот тридцать пятом году.
東京は日本の首都であり、世界最大の都市圏の一つです。
机器学习是人工智能的一个分支，它从数据中学习。
기계 학습은 데이터에서 패턴을 찾는 방법이다.
تعلم الآلة هو فرع من فروع الذكاء الاصطناعي.
मशीन लर्निंग डेटा से सीखती है।
Η Αθήνα είναι η πρωτεύουσα της Ελλάδας.
Öğrenciler kütüphanede sessizce çalışıyorlar.
Słońce wschodzi na wschodzie, a zachodzi na zachodzie.
def f(x): return {"a": [x ** 2, 3.14], 'b': None}  # noqa
""".strip().splitlines()


def texts() -> list[str]:
    """Return 250 texts, from empty to several times the limit, most of them short; half of them mix languages."""
    rng = random.Random(8)
    words = [word for sentence in SENTENCES for word in sentence.split()]
    made = ["", " ", "?", "🙂 emoji", "a" * 400, *SENTENCES]
    counts = [150, 200, 250, 300, 400, 500, 600]
    counts += [min(60, int(rng.lognormvariate(1.3, 1))) for _ in range(250 - len(made) - len(counts))]
    for count in counts:
        source = words if rng.random() < 0.5 else rng.choice(SENTENCES).split()
        made.append(" ".join(rng.choice(source) for _ in range(count)))
    return made


@pytest.mark.slow
def test_vectors_equal_sentence_transformers() -> None:
    source = catalog()[MODEL].source
    assert Path(source).is_dir()  # the package's folder, not a Hub id
    all_texts = texts()
    expected = SentenceTransformer(source, device="cpu").encode(all_texts, show_progress_bar=False)
    with asking({}) as client:  # offline
        body = {"items": [{"text": text} for text in all_texts]}
        answer = post(client, f"/v1/encode/{MODEL}", body)
    ours = np.array([item["dense"]["values"] for item in answer["items"]])
    cosines = (ours * expected).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(expected, axis=1)
    assert len(cosines) == 250
    assert cosines.min() >= 0.99999
    assert np.std(ours @ ours[6]) > 0.05  # equal texts would prove nothing
    assert sum(bool(item.get("truncated")) for item in answer["items"]) > 5


def test_without_the_package_the_id_is_the_hubs(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = catalog()[MODEL].entry
    assert entry is not None
    monkeypatch.setattr(entries, "find_spec", lambda name: None)
    assert entries.model_of(entry).source == MODEL
