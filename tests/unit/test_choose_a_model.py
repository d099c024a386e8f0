"""docs/choose-a-model.md lists every reranker of the catalog once, with the limits and licences of its entry."""

from __future__ import annotations

import re

from sie_server.catalog import catalog
from support.docs.pages import DOCS

PAGE = (DOCS / "choose-a-model.md").read_text(encoding="utf-8")
ROW = re.compile(
    r"^\| `([^`]+)` \| ([^|]+) \| (\d+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE
)


def test_the_tables_are_those_of_the_catalog() -> None:
    rows = [found.groups() for found in ROW.finditer(PAGE)]
    entries = {model.id: model.entry for model in catalog().values()}
    scorers = {name for name, entry in entries.items() if entry and "score" in entry.outputs}
    assert sorted(row[0] for row in rows) == sorted(scorers)
    for name, _, tokens, _, licence, *_ in rows:
        entry = entries[name]
        assert entry and (str(entry.max_seq_length), entry.license) == (tokens, licence), name


def test_models_and_sources_that_the_page_names_exist() -> None:
    known = {name for model in catalog().values() for name in (model.id, *model.aliases)}
    named = set(re.findall(r"`([\w.-]+/[\w.-]+)`", PAGE))
    assert named <= known
    cited = set(re.findall(r"\[\[(\w)\]\]\(#sources\)", PAGE))
    assert cited == set(re.findall(r"^\| (\w) \| \[", PAGE, re.MULTILINE))
