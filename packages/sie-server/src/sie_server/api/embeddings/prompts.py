"""Which prompt is put before the texts of another vendor's request for embeddings.

A request names at most one of: a side or task (`input_type` of Cohere, Voyage, NVIDIA and Azure; `task` of Jina;
`task_type` of Google; `prompt_type` of MTEB; `is_query` of SIE), the name of a prompt (`prompt_name` of
sentence-transformers and TEI), or its text (`prompt` of sentence-transformers and Mixedbread). Without any, only the
checkpoint's `default_prompt_name` applies, as in `SentenceTransformer.encode`.
"""

from __future__ import annotations

from sie_server.api.dialects.fields import Fields
from sie_server.errors import InvalidInput, shown
from sie_server.serving.vendor import PromptChoice

TASKS = ("input_type", "task", "task_type", "prompt_type")
CHOICES = (*TASKS, "is_query", "prompt_name", "prompt")
QUERIES = ("query",)
DOCUMENTS = ("document", "passage", "corpus")
NO_SIDE = ("", "text", "none")  # `text` is Azure's default
# tasks in which both sides are alike: Cohere, Jina, Google
SYMMETRIC = (
    "classification",
    "clustering",
    "separation",
    "text-matching",
    "semantic_similarity",
    "fact_verification",
)


def read_prompt(fields: Fields) -> PromptChoice:
    """Take the fields that choose the prompt.

    Raises:
        InvalidInput: two fields choose one, or a value is not known.
    """
    name = fields.take(str, "prompt_name")
    text = fields.take(str, "prompt")
    is_query = fields.take(bool, "is_query")
    tasks = {field: fields.take(str, field) for field in TASKS}
    values = {**tasks, "is_query": is_query, "prompt_name": name, "prompt": text}
    given = [field for field in CHOICES if values[field] is not None]
    if len(given) > 1:
        raise InvalidInput(
            f"`{given[0]}` and `{given[1]}` both choose the prompt; send only one - at `$.{given[1]}`"
        )
    for field in ("instruction", "instruct"):
        fields.refuse(field, "send the whole prompt, as the model card writes it, in `prompt`")
    task = next(((field, value) for field, value in tasks.items() if value is not None), None)
    return _of_task(*task) if task else PromptChoice(text=text, name=name, is_query=is_query)


def _of_task(field: str, value: str) -> PromptChoice:
    """Return the choice of a side or task, `retrieval.query` or `search_document` for example."""
    plain = value.lower()
    if plain in NO_SIDE:
        return PromptChoice()
    if plain.endswith(QUERIES):
        return PromptChoice(task=value, is_query=True)
    if plain.endswith(DOCUMENTS):
        return PromptChoice(task=value, is_query=False)
    if plain in SYMMETRIC:
        return PromptChoice(task=value)
    raise InvalidInput(
        f"unknown value {shown(value)}; send query, document or one of {', '.join(SYMMETRIC)}, or choose a prompt "
        f"of the checkpoint with `prompt_name` - at `$.{field}`"
    )
