"""The endpoints: the request of each, and the reader of its answer. Pure functions, used by both clients."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast
from urllib.parse import quote

from sie_sdk.codec import JSON, MSGPACK, CodecError, decode_body, encode_body
from sie_sdk.errors import ProtocolError, RequestError
from sie_sdk.flow import Reply, Request
from sie_sdk.types import EncodeResult, ItemLike, ModelInfo, OutputDtype, OutputType, ScoreResult

T = TypeVar("T")
log = logging.getLogger("sie_sdk")


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request and the reader of its 200 answer, which raises ProtocolError.

    timeout, deadline: seconds for this call only; None means the client's settings. give_up: seconds after which no
    attempt is worth starting.
    """

    request: Request
    read: Callable[[Reply], T]
    timeout: float | None = None
    deadline: float | None = None
    give_up: float = math.inf


def score(
    model: str,
    query: ItemLike,
    items: Sequence[ItemLike],
    *,
    instruction: str | None = None,
    options: Mapping[str, Any] | None = None,
    timeout: float | None = None,
    deadline: float | None = None,
) -> Call[ScoreResult]:
    """POST /v1/score/{model}. Raises RequestError for errors that are found before sending."""
    body: dict[str, Any] = {"query": _item(query, "query"), "items": _items(items)}
    body |= _present(instruction=instruction, options=None if options is None else dict(options))
    asked = Asked.of(body)
    request = _post("score", model, body)
    return Call(request, lambda reply: _read_score(reply, asked), timeout, deadline, _give_up(options))


def encode(
    model: str,
    items: ItemLike | Sequence[ItemLike],
    *,
    output_types: Sequence[OutputType] | None = None,
    output_dtype: OutputDtype | None = None,
    instruction: str | None = None,
    is_query: bool | None = None,
    options: Mapping[str, Any] | None = None,
    timeout: float | None = None,
    deadline: float | None = None,
) -> Call[list[EncodeResult]]:
    """POST /v1/encode/{model}; one result per item, in order. Raises RequestError as `score` does."""
    listed = [items] if isinstance(items, Mapping) else items
    if isinstance(output_types, str):
        raise RequestError(f"output_types is a string; pass a list: [{output_types!r}]", code="INVALID_INPUT")
    params = _present(
        output_types=None if output_types is None else list(output_types),
        output_dtype=output_dtype,
        instruction=instruction,
        options=dict(options or {}) | _present(is_query=is_query) or None,
    )
    body: dict[str, Any] = {"items": _items(listed)} | _present(params=params or None)
    ids = [item.get("id") for item in body["items"]]
    request = _post("encode", model, body)
    return Call(request, lambda reply: _read_encode(reply, ids), timeout, deadline, _give_up(options))


def list_models(*, timeout: float | None = None, deadline: float | None = None) -> Call[list[ModelInfo]]:
    """GET /v1/models."""
    return Call(Request("GET", "/v1/models", JSON), _read_models, timeout, deadline)


def get_model(model: str, *, timeout: float | None = None, deadline: float | None = None) -> Call[ModelInfo]:
    """GET /v1/models/{model}."""
    return Call(Request("GET", f"/v1/models/{_model_path(model)}", JSON), _read_model, timeout, deadline)


# ── requests ────────────────────────────────────────────────────────────────────────────────


def _post(verb: str, model: str, body: Mapping[str, Any]) -> Request:
    path = f"/v1/{verb}/{_model_path(model)}"
    try:
        return Request("POST", path, MSGPACK, encode_body(body), MSGPACK)
    except CodecError as exc:
        raise RequestError(f"the request cannot be sent: {exc}", code="INVALID_INPUT") from exc


def _model_path(model: str) -> str:
    """Return the id percent-encoded, except for slashes (`org/name`) and colons (`model:adapter`)."""
    if not isinstance(model, str):
        raise RequestError(f"model is a {type(model).__name__}; pass its id, a string", code="INVALID_INPUT")
    if any(part in ("", ".", "..") for part in model.split("/")):  # the path would be that of another route
        raise RequestError(f"{model!r} is not a model id", code="INVALID_INPUT")
    return quote(model, safe="/:", errors="replace")


def _items(items: Iterable[ItemLike]) -> list[dict[str, Any]]:
    if isinstance(items, (str, bytes, Mapping)) or not isinstance(items, Iterable):
        raise RequestError(
            f"items is a {type(items).__name__}; pass a list: [Item(text=...), ...]", code="INVALID_INPUT"
        )
    checked = [_item(item, f"items[{index}]") for index, item in enumerate(items)]
    if not checked:
        raise RequestError("items is empty; pass at least one Item(text=...)", code="INVALID_INPUT")
    return checked


def _item(item: Any, where: str) -> dict[str, Any]:
    if isinstance(item, Mapping):
        return dict(item)
    raise RequestError(f"{where} is a {type(item).__name__}; pass Item(text=...)", code="INVALID_INPUT")


def _give_up(options: Mapping[str, Any] | None) -> float:
    """Return `deadline_ms` in seconds: a request that the server refused for it is not sent after it."""
    value = (options or {}).get("deadline_ms")
    return value / 1000 if isinstance(value, (int, float)) and not isinstance(value, bool) else math.inf


def _present(**values: Any) -> dict[str, Any]:
    """Return the values that are not None: on the wire, nil and absent mean the same."""
    return {name: value for name, value in values.items() if value is not None}


# ── answers ─────────────────────────────────────────────────────────────────────────────────


def _body(reply: Reply, media_type: str) -> dict[str, Any]:
    try:
        value = decode_body(reply.body, media_type)
    except CodecError as exc:
        found = reply.headers.get("content-type", "none")
        raise _broken(
            reply, f"the answer is not valid {media_type} ({exc}); its content type: {found}"
        ) from exc
    if not isinstance(value, dict):
        raise _broken(reply, f"the answer is a {type(value).__name__}, not a map")
    return value


def _broken(reply: Reply, message: str) -> ProtocolError:
    return ProtocolError(message, status=reply.status, request_id=reply.request_id)


def _get(reply: Reply, mapping: Any, key: str, kinds: tuple[type, ...], where: str = "") -> Any:
    """Return `mapping[key]` if its type is one of `kinds`; a bool does not count as a number."""
    if not isinstance(mapping, dict):
        raise _broken(reply, f"`{where.rstrip('.')}` is a {type(mapping).__name__}, not a map")
    if key not in mapping:
        raise _broken(reply, f"the answer has no `{where}{key}`")
    value = mapping[key]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise _broken(reply, f"`{where}{key}` is a {type(value).__name__}, not {names}")
    return value


@dataclass(frozen=True)
class Asked:
    """The ids that an answer must have, and the largest number of entries."""

    query_id: Any
    ids: tuple[Any, ...]
    top_n: Any

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Asked:
        """Read the body of a score request. An item without an id is called by its position."""
        ids = (item.get("id") for item in body["items"])
        named = tuple(f"item-{index}" if one is None else one for index, one in enumerate(ids))
        return cls(body["query"].get("id"), named, (body.get("options") or {}).get("top_n"))


def _read_score(reply: Reply, asked: Asked) -> ScoreResult:
    """Check that the answer is one to `asked`: each of its items once, best first, with a finite score."""
    body = _body(reply, MSGPACK)
    _get(reply, body, "model", (str,))
    entries = _get(reply, body, "scores", (list,))
    unseen = Counter(asked.ids)
    for index, entry in enumerate(entries):
        where = f"scores[{index}]."
        item_id = _get(reply, entry, "item_id", (str, type(None)), where)
        score = _get(reply, entry, "score", (float, int), where)
        rank = _get(reply, entry, "rank", (int,), where)
        if not unseen[item_id]:
            raise _broken(reply, f"`{where}item_id` is {item_id!r}, which was not sent or is already ranked")
        if not math.isfinite(score):
            raise _broken(reply, f"`{where}score` is {score}")
        if rank != index:
            raise _broken(reply, f"`{where}rank` is {rank}, not {index}")
        unseen[item_id] -= 1
    limits = [one for one in (asked.top_n, body.get("top_n")) if type(one) is int]
    if any(limit < 1 for limit in limits):  # the server refuses such a request
        raise _broken(reply, f"`top_n` is {min(limits)}")
    expected = min([len(asked.ids) - _count_pruned(reply, body, unseen), *limits])
    if len(entries) != expected:
        raise _broken(reply, f"{len(entries)} scores for {expected} of {len(asked.ids)} items")
    if None not in (asked.query_id, body.get("query_id")) and body["query_id"] != asked.query_id:
        raise _broken(reply, f"`query_id` is {body['query_id']!r}, not {asked.query_id!r}")
    return cast(ScoreResult, body | _present(request_id=reply.request_id))


def _count_pruned(reply: Reply, body: Mapping[str, Any], unseen: Counter[Any]) -> int:
    """Return how many items the stages of a cascade have pruned; each must be unranked."""
    if body.get("stages") is None:
        return 0
    count = 0
    for place, stage in enumerate(_get(reply, body, "stages", (list,))):
        for item_id in _get(reply, stage, "pruned", (list,), f"stages[{place}]."):
            if not isinstance(item_id, str) or not unseen[item_id]:
                raise _broken(
                    reply,
                    f"`stages[{place}].pruned` has {item_id!r}, which was not sent or is ranked",
                )
            unseen[item_id] -= 1
            count += 1
    return count


def _read_encode(reply: Reply, ids: Sequence[Any]) -> list[EncodeResult]:
    body = _body(reply, MSGPACK)
    items = _get(reply, body, "items", (list,))
    if len(items) != len(ids):
        raise _broken(reply, f"{len(items)} results for {len(ids)} items")
    for warning in body.get("warnings") or ():
        log.warning("encode: %s", warning)  # the results are vectors and have no field for it
    results = [_read_vectors(reply, item, f"items[{index}].") for index, item in enumerate(items)]
    for index, (asked, result) in enumerate(zip(ids, results, strict=True)):
        if asked is not None and result.get("id", asked) != asked:
            raise _broken(reply, f"`items[{index}].id` is {result.get('id')!r}, not {asked!r}")
    return results


def _read_vectors(reply: Reply, item: Any, where: str) -> EncodeResult:
    """Replace each `{"dims", "dtype", "values"}` by its values."""
    if not isinstance(item, dict):
        raise _broken(reply, f"`{where.rstrip('.')}` is a {type(item).__name__}, not a map")
    result = item | _present(request_id=reply.request_id)
    for kind, parts, ndim in (
        ("dense", ("values",), 1),
        ("multivector", ("values",), 2),
        ("sparse", ("indices", "values"), 1),
    ):
        if item.get(kind) is None:
            result.pop(kind, None)
            continue
        vector = _get(reply, item, kind, (dict,), where)
        arrays = {part: _array(reply, vector, part, f"{where}{kind}.", ndim) for part in parts}
        result[kind] = arrays if kind == "sparse" else arrays["values"]
    return cast(EncodeResult, result)


def _array(reply: Reply, vector: dict[str, Any], part: str, where: str, ndim: int) -> Any:
    import numpy as np

    array = _get(reply, vector, part, (np.ndarray,), where)
    if array.ndim != ndim:
        raise _broken(reply, f"`{where}{part}` has shape {array.shape}; expected {ndim} dimensions")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise _broken(reply, f"`{where}{part}` has values that are not finite")
    return array


def _read_model(reply: Reply) -> ModelInfo:
    return _checked_model(reply, _body(reply, JSON), "")


def _read_models(reply: Reply) -> list[ModelInfo]:
    models = _get(reply, _body(reply, JSON), "models", (list,))
    return [_checked_model(reply, model, f"models[{index}].") for index, model in enumerate(models)]


def _checked_model(reply: Reply, model: Any, where: str) -> ModelInfo:
    _get(reply, model, "name", (str,), where)
    _get(reply, model, "loaded", (bool,), where)
    _get(reply, model, "inputs", (list,), where)
    _get(reply, model, "outputs", (list,), where)
    return cast(ModelInfo, model)
