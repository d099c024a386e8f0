"""One request to a cascade: the documents that a cheap model ranks lowest are not read by the next one.

The scores, their type and their options are those of the last stage. Options of a request about all documents
(`EVERY_STAGE`) apply to every stage, all others to the last one.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from msgspec import UNSET, structs

from sie_server.catalog import CascadeEntry, Stage
from sie_server.errors import InferenceError, InvalidInput
from sie_server.serving.finishing import Part, finish, item_id, order_of, warnings_of
from sie_server.serving.requests.options import ELSEWHERE, Instruction, ParsedOptions
from sie_server.wire import Item, Options, ScoreRequest, ScoreResponse, StageReport, Usage

# The documents must be read alike: a stage that truncates what the next one splits would prune by other text.
EVERY_STAGE = ("priority", "long_document", "max_document_tokens", "aggregate")
OWN = (
    "profile",
    "deadline_ms",
    "instruction",
    "lora",
    "lora_id",
    *ELSEWHERE["score"],
)  # of the whole request
ITEM = re.compile(r"\$\.items\[(\d+)\]")
Read = Callable[[str, ParsedOptions, ScoreRequest], Awaitable[Part]]


class Parse(Protocol):
    """Checks the options of a stage against its model's profiles; returns the model's id, too."""

    def __call__(self, model: str, raw: dict[str, Any]) -> tuple[str, ParsedOptions]: ...


def options_of(
    cascade: CascadeEntry, place: int, parsed: ParsedOptions, parse: Parse
) -> tuple[str, ParsedOptions]:
    """Return the model id and the options of a stage for a request with the options `parsed`."""
    stage, last = cascade.stages[place], place == len(cascade.stages) - 1
    name, options = parse(stage.model, _raw(stage, parsed, last=last))
    instruction = options.instruction
    if parsed.instruction.text:  # stages before the last one use it if they take any
        instruction = replace(parsed.instruction, path=parsed.instruction.path if last else None)
    elif instruction.path:
        instruction = Instruction(instruction.text, f"$.stages[{place}].options.instruction")
    return name, replace(options, instruction=instruction)


def _raw(stage: Stage, parsed: ParsedOptions, *, last: bool) -> dict[str, Any]:
    own, asked = _present(stage.options), _present(parsed.known)
    if last:
        adapter = {} if parsed.adapter is None else {"lora": parsed.adapter}
        return own | {name: value for name, value in asked.items() if name not in OWN} | adapter
    raw = own | {name: asked[name] for name in EVERY_STAGE if name in asked}
    if raw.get("long_document") != "chunk":  # only the last stage may split documents
        raw.pop("aggregate", None)
    return raw


def _present(options: Options) -> dict[str, Any]:
    return {name: value for name, value in structs.asdict(options).items() if value is not None}


@dataclass
class CascadeRun:
    """The documents that are left, and what the stages so far have cost."""

    cascade: CascadeEntry
    parsed: ParsedOptions
    request: ScoreRequest
    parse: Parse
    read: Read
    places: list[int] = field(default_factory=list)  # of the documents that are left, in the request
    reports: list[StageReport] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    query_truncated: bool = False

    async def response(self, model: str) -> ScoreResponse:
        """Run the stages one after the other; `model` is the name in the request.

        A stage that would prune nothing does not run.

        Raises:
            SIEError: of any stage. A message about a document names its place in the request.
        """
        self.places = list(range(len(self.request.items)))
        self.request = structs.replace(self.request, items=_named(self.request.items))
        for place, stage in enumerate(self.cascade.stages[:-1]):
            if stage.keep is not None and len(self.places) > stage.keep:
                await self._prune(place, stage, stage.keep)
            else:
                self.reports.append(StageReport(stage.model, 0, []))
        return await self._finish(model)

    async def _prune(self, place: int, stage: Stage, keep: int) -> None:
        left = self._left()
        part, order = await self._scored(place, left)
        kept, pruned = order[:keep], order[keep:]
        self.reports.append(StageReport(stage.model, _tokens(part), [item_id(left.items, i) for i in pruned]))
        self.warnings += [f"{_named_stage(place, stage)}: {text}" for text in warnings_of(part, left)]
        self.query_truncated |= part.query_truncated
        self.places = [self.places[i] for i in sorted(kept)]  # ties keep the order of the request

    async def _finish(self, model: str) -> ScoreResponse:
        stages, left = self.cascade.stages, self._left()
        part, _ = await self._scored(len(stages) - 1, left)
        response = finish(part, left)
        self.reports.append(StageReport(stages[-1].model, _tokens(part), []))
        wanted = self.parsed.known.top_n
        if wanted and len(left.items) < min(wanted, len(self.request.items)):
            self.warnings.append(
                f"top_n is {wanted}, and the last stage of this cascade read only {len(left.items)} documents"
            )
        warnings = [*self.parsed.warnings, *self.warnings, *(response.warnings or [])]
        return structs.replace(
            response,
            model=model,
            usage=Usage(sum(report.input_tokens for report in self.reports)),
            query_truncated=self.query_truncated or response.query_truncated,
            warnings=warnings or UNSET,
            stages=self.reports,
        )

    def _left(self) -> ScoreRequest:
        items = self.request.items
        return structs.replace(self.request, items=[items[i] for i in self.places])

    async def _scored(self, place: int, left: ScoreRequest) -> tuple[Part, list[int]]:
        """Return the results of a stage, and the indices of its documents by relevance."""
        try:
            name, options = options_of(self.cascade, place, self.parsed, self.parse)
            part = await self.read(name, options, left)
            return part, order_of(part.documents.raw)
        except (InvalidInput, InferenceError) as error:
            message = ITEM.sub(lambda found: f"$.items[{self.places[int(found[1])]}]", error.message)
            if place < len(self.cascade.stages) - 1:
                message = f"{_named_stage(place, self.cascade.stages[place])}: {message}"
            raise type(error)(message, retry_after_s=error.retry_after_s, **error.details) from None


def _named(items: Sequence[Item]) -> list[Item]:
    """Give each document the id that its entry would have, which must not change when others are pruned."""
    return [
        item if item.id is not None else structs.replace(item, id=item_id(items, i))
        for i, item in enumerate(items)
    ]


def _named_stage(place: int, stage: Stage) -> str:
    return f"stage {place + 1} ({stage.model})"


def _tokens(part: Part) -> int:
    return part.document_tokens + part.query_tokens
