"""Errors: the class tree in the module docstring, and the attributes of every error."""

from __future__ import annotations

import pickle

import pytest

from sie_sdk import errors


def tree(kind: type) -> list[type]:
    return [kind] + [below for child in kind.__subclasses__() for below in tree(child)]


def test_the_docstring_draws_the_tree() -> None:
    lines = (errors.__doc__ or "").splitlines()
    depth = {
        line[i:].split()[0]: i // 4
        for line in lines
        for i in [len(line) - len(line.lstrip(" │├└─"))]
        if line.strip()
    }
    for kind in tree(errors.SIEError):
        assert depth.get(kind.__name__) == kind.__mro__.index(errors.SIEError) + 1, kind


@pytest.mark.parametrize("kind", tree(errors.SIEError))
def test_every_error_survives_a_pickle(kind: type[errors.SIEError]) -> None:
    error = kind("words", code="C", status=418, request_id="r", retryable=True, details={"permanent": False})
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301  our own bytes: process pools send errors this way
    assert type(copy) is kind
    assert vars(copy) == vars(error)
    assert str(copy) == "words (418 C, request r)"


def test_unknown_attributes_are_left_out_of_the_text() -> None:
    assert str(errors.SIEError("words")) == "words"
    assert str(errors.SIEError("words", status=500)) == "words (500)"
    assert str(errors.SIEError("words", request_id="r")) == "words (request r)"


def test_passing_conditions_are_retryable() -> None:
    passing = {kind.__name__ for kind in tree(errors.SIEError) if kind("x").retryable}
    assert passing == {"RateLimitedError", "ModelLoadingError", "QueueFullError", "ResourceExhaustedError"}
