"""The journal and the pieces of work: nothing is lost, and nothing is done twice."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from sie_server.offline.errors import OfflineError
from sie_server.offline.journal import Journal, key_of
from sie_server.offline.run import Piece, finish, run


def test_results_survive_and_a_torn_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "deep/a.jsonl"
    with Journal(path, {"model": "m"}) as journal:
        journal.add("one", {"scores": [1.5]})
        journal.add("two", "ü")
    path.write_bytes(path.read_bytes() + b'{"key": "three", "res')
    with Journal(path, {"model": "m"}) as journal:
        assert journal["one"] == {"scores": [1.5]} and journal["two"] == "ü" and "three" not in journal
        journal.add("three", 3)
    with Journal(path, {"model": "m"}) as journal:
        assert journal["three"] == 3


def test_a_torn_first_line_is_written_anew(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b'{"form')
    with Journal(tmp_path / "a", {}) as journal:
        journal.add("k", 1)
    with Journal(tmp_path / "a", {}) as journal:
        assert journal["k"] == 1


def test_the_journal_of_another_work_is_refused(tmp_path: Path) -> None:
    Journal(tmp_path / "a", {"version": "1"}).close()
    with pytest.raises(OfflineError, match=r"version was '1' and is '2'; choose another --out"):
        Journal(tmp_path / "a", {"version": "2"})
    (tmp_path / "a").write_text("text\n")
    with pytest.raises(OfflineError, match="line 1: not a line of a journal"):
        Journal(tmp_path / "a", {"version": "1"})


def test_two_processes_do_not_share_a_journal(tmp_path: Path) -> None:
    with Journal(tmp_path / "a", {}), pytest.raises(OfflineError, match="another process writes"):
        Journal(tmp_path / "a", {})
    Journal(tmp_path / "a", {}).close()


def test_an_unusable_path_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OfflineError, match="cannot use"):
        Journal(tmp_path / "file/a", {})


def test_keys_depend_on_every_part() -> None:
    assert key_of("a", ["b"]) == key_of("a", ["b"]) != key_of("a", "b")
    assert key_of("ab", "c") != key_of("a", "bc")


async def test_only_missing_pieces_are_done_and_an_error_keeps_the_others() -> None:
    journal = Journal(None, {})
    done: list[int] = []

    async def do(work: int) -> int:
        if work == 3:
            raise OfflineError("gone")
        done.append(work)
        return work * 2

    pieces = [Piece(str(work), work) for work in (1, 2, 2, 3, 4)]
    with pytest.raises(OfflineError, match="gone"):
        await finish(pieces, do, journal)
    assert done == [1, 2] and journal["2"] == 4
    await finish([piece for piece in pieces if piece.work != 3], do, journal)
    assert done == [1, 2, 4]


async def test_pieces_run_at_the_same_time_up_to_the_limit() -> None:
    running = most = 0

    async def do(work: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return work

    journal = Journal(None, {})
    await finish([Piece(str(work), work) for work in range(10)], do, journal, concurrency=3)
    assert most == 3 and all(journal[str(work)] == work for work in range(10))


async def test_work_runs_inside_a_notebook() -> None:
    async def work() -> str:
        await asyncio.sleep(0)
        return "done"

    assert run(work()) == "done"  # an event loop runs here, as in a notebook
