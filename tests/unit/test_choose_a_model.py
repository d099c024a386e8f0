"""docs/choose-a-model.md lists every reranker of the catalog once, with the limits and licences of its entry."""

from __future__ import annotations

import re

from sie_server.catalog import catalog
from support.docs.pages import DOCS

PAGE = (DOCS / "choose-a-model.md").read_text(encoding="utf-8")
ROW = re.compile(
    r"^\| `([^`]+)` \| ([^|]+) \| (\d+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE
)

SHAPES = {  # of models whose speed is quoted, as docs/performance.md names them
    "cross-encoder/ms-marco-MiniLM-L6-v2": "MiniLM-L6",
    "BAAI/bge-reranker-base": "XLM-R base",
    "maidalun1020/bce-reranker-base_v1": "XLM-R base",
}


def test_the_tables_are_those_of_the_catalog() -> None:
    rows = [found.groups() for found in ROW.finditer(PAGE)]
    entries = {model.id: model.entry for model in catalog().values()}
    scorers = {name for name, entry in entries.items() if entry and "score" in entry.outputs}
    assert sorted(row[0] for row in rows) == sorted(scorers)
    for name, _, tokens, _, licence, *_ in rows:
        entry = entries[name]
        assert entry and (str(entry.max_seq_length), entry.license) == (tokens, licence), name


def test_pairs_per_second_are_those_of_the_measured_times() -> None:
    """100 documents in the time of docs/performance.md, for models of the shapes there."""
    speed = (DOCS / "performance.md").read_text(encoding="utf-8")
    times = {
        found[1]: float(found[2].replace(",", ""))
        for found in re.finditer(r"^\| ([\w -]+, (?:AMX|AVX512-BF16)) \| ([\d,]+) ms \|", speed, re.MULTILINE)
    }
    assert len(times) == 4
    quoted = {row[0]: row[6] for row in (found.groups() for found in ROW.finditer(PAGE)) if row[6] != "–"}
    served = re.search(r"^\| 32 clients × 100 documents \| [^|]+ \| (\d+) pairs/s", speed, re.MULTILINE)
    assert served and quoted.pop("sie/mini-en") == f"{served[1]} (AMX, 32 clients)"
    assert quoted.keys() == SHAPES.keys()
    for name, figures in quoted.items():
        machines = [
            f"{round(100e3 / times[f'{SHAPES[name]}, {each}'])} ({each})" for each in ("AMX", "AVX512-BF16")
        ]
        assert figures == ", ".join(machines), name


def test_models_and_sources_that_the_page_names_exist() -> None:
    known = {name for model in catalog().values() for name in (model.id, *model.aliases)}
    named = set(re.findall(r"`([\w.-]+/[\w.-]+)`", PAGE))
    assert named <= known
    cited = set(re.findall(r"\[\[(\w)\]\]\(#sources\)", PAGE))
    assert cited == set(re.findall(r"^\| (\w) \| \[", PAGE, re.MULTILINE))
