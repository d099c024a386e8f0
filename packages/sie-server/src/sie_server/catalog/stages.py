"""The stages of a cascade, as a YAML file has them. Cheap stages prune the documents that the last one scores."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from msgspec import Meta, Struct, structs

from sie_server.config import NAME_LENGTH
from sie_server.errors import shown
from sie_server.wire import Profile

# Options about what a model reads and how it compares; all others are those of a request.
STAGE_OPTIONS = (
    "instruction",
    "max_seq_length",
    "max_document_tokens",
    "lora",
    "long_document",
    "chunk_overlap",
    "aggregate",
    "score_mode",
    "score_weights",
    "cutoff_layer",
)


class Stage(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A model that reads the documents which the stages before it have kept."""

    model: Annotated[str, Meta(min_length=1, max_length=NAME_LENGTH)]
    keep: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="Number of documents that the next stage reads; all stages but the last have it"),
    ] = None
    options: Profile = Profile()

    def __post_init__(self) -> None:
        for name, value in structs.asdict(self.options).items():
            if value is not None and name not in STAGE_OPTIONS:
                raise ValueError(
                    f"a stage has no option {name!r}; put it into a profile of the cascade, and keep only "
                    f"{', '.join(STAGE_OPTIONS)} here"
                )


class CascadeEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """The fields of a YAML file with `stages`."""

    id: Annotated[str, Meta(min_length=1)]
    stages: Annotated[tuple[Stage, ...], Meta(min_length=2, max_length=4)]
    license: str | None = None
    description: str | None = None
    aliases: tuple[str, ...] = ()
    profiles: Annotated[
        dict[str, Profile],
        Meta(description="Name → options of a request; `default` applies to requests without a profile"),
    ] = {}

    def __post_init__(self) -> None:
        """Raise ValueError for stages that contradict each other; msgspec adds the path of the entry."""
        for place, stage in enumerate(self.stages):
            at = f"- at `$.stages[{place}]"
            if stage.model in (self.id, *self.aliases):
                raise ValueError(
                    f"the cascade names itself, {shown(stage.model)}; name another model {at}.model`"
                )
            last = place == len(self.stages) - 1
            if not last and stage.keep is None:
                raise ValueError(f"the number of documents that the next stage reads is missing {at}.keep`")
            if last and stage.keep is not None:
                raise ValueError(
                    f"no stage follows the last one; omit keep, or limit the answer with top_n in a profile {at}.keep`"
                )
        for place, (one, other) in enumerate(pairwise(self.stages[:-1])):
            if (one.keep or 0) <= (other.keep or 0):
                raise ValueError(
                    f"the stage before keeps {one.keep} documents, so keeping {other.keep} has no effect; "
                    f"choose a smaller number - at `$.stages[{place + 1}].keep`"
                )
