"""Renders a chat template of a checkpoint in a child process with limits on time, memory and output.

A template is a program: it may never end, or fill the memory, and its sandbox may have holes. The child is this file,
run by its path, so that it imports jinja2 and nothing else. It has no environment variables. Requests and answers are
JSON: the source and the variables of each rendering in, a text or a reason for each out.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from functools import lru_cache
from typing import Any

CPU_S, WALL_S = 2, 10.0  # a genuine template takes less than 0.1 s
MEMORY_BYTES = 512 * 2**20  # of address space; Python with jinja2 takes about 60 MiB
OUTPUT_CHARS = 2**20
ANSWER_BYTES = 16 * 2**20
REASON_CHARS = 200


class RenderError(Exception):
    """The template is invalid, cannot render these variables, or exceeds a limit; the message says which."""


def render(source: str, renderings: list[dict[str, Any]]) -> list[str]:
    """Return the text of each rendering, in which the template sees these variables; blocking.

    The environment is that of transformers' chat_template_utils. A template that needs more is refused.

    Raises:
        RenderError: the message begins with a verb, for the name of the template before it.
    """
    request = {"path": sys.path, "cpu_s": CPU_S, "source": source, "renderings": renderings}
    return list(_texts(json.dumps(request)))


@lru_cache(maxsize=16)  # a load reads the configuration twice; failures are not kept
def _texts(request: str) -> tuple[str, ...]:
    answer = json.loads(_ask_child(request.encode()))
    if "refused" in answer:
        raise RenderError(answer["refused"])
    for text in answer["texts"]:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise RenderError("renders text that is not valid Unicode") from None
    return tuple(answer["texts"])


def _ask_child(request: bytes) -> bytes:
    """Return the answer of a new child, which is killed at the end in any case."""
    try:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={k: v for k, v in os.environ.items() if k in ("LD_LIBRARY_PATH", "SYSTEMROOT")},
        )
    except OSError as error:
        raise RenderError(f"cannot be rendered, because no process can be started: {error}") from error
    with child:
        try:
            end = time.monotonic() + WALL_S
            _send(child, request, end)
            answer = _read_answer(child, end)
        finally:
            child.kill()
    if not answer.endswith(b"}"):
        raise RenderError(
            f"does not render within {CPU_S} s of processor time and {MEMORY_BYTES // 2**20} MiB of memory"
        )
    return answer


def _send(child: subprocess.Popen[bytes], request: bytes, end: float) -> None:
    """Write the request, and close the pipe. No temporary file: a container may have no place for one."""
    assert child.stdin is not None
    descriptor, rest = child.stdin.fileno(), memoryview(request)
    os.set_blocking(descriptor, False)  # a child that reads nothing must not hold up this thread
    with contextlib.suppress(BrokenPipeError):  # the child has ended, perhaps with an answer
        while rest:
            _wait([], [descriptor], end)
            rest = rest[os.write(descriptor, rest) :]
    child.stdin.close()


def _read_answer(child: subprocess.Popen[bytes], end: float) -> bytes:
    """Read all that the child writes, within the limits of time and size."""
    assert child.stdout is not None
    descriptor, answer = child.stdout.fileno(), b""
    while len(answer) <= ANSWER_BYTES:
        _wait([descriptor], [], end)
        part = os.read(descriptor, 2**16)
        if not part:
            return answer
        answer += part
    raise RenderError(f"renders more than {OUTPUT_CHARS} characters")


def _wait(readable: list[int], writable: list[int], end: float) -> None:
    """Wait until the pipe can be read or written. Raises RenderError at `end`."""
    import select

    if not any(select.select(readable, writable, [], max(0.0, end - time.monotonic()))):
        raise RenderError(f"does not render within {WALL_S:g} s")


# ── everything below runs in the child ──


def _child() -> None:
    answer: dict[str, Any]
    request = json.loads(sys.stdin.buffer.read())
    sys.path[:] = request["path"]
    _limit(request["cpu_s"])
    try:
        answer = {"texts": _rendered(request["source"], request["renderings"])}
    except RenderError as error:
        answer = {"refused": str(error)}
    except MemoryError:
        answer = {"refused": f"needs more than {MEMORY_BYTES // 2**20} MiB of memory"}
    sys.stdout.write(json.dumps(answer))


def _limit(cpu_s: int) -> None:
    """Limit this process. A system that lacks a limit leaves the wall time of the parent."""
    with contextlib.suppress(ImportError):
        import resource

        limits = {"CPU": cpu_s, "AS": MEMORY_BYTES, "CORE": 0, "FSIZE": 0, "NPROC": 0}
        for name, value in limits.items():
            with contextlib.suppress(AttributeError, ValueError, OSError):
                resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def _rendered(source: str, renderings: list[dict[str, Any]]) -> list[str]:
    from jinja2 import TemplateError, ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[ext.loopcontrols]
    )
    environment.globals["raise_exception"] = _raise
    try:
        template = environment.from_string(source)
    except (TemplateError, SyntaxError, RecursionError, ValueError, OverflowError) as error:
        raise RenderError(f"is not a valid template: {_reason(error)}") from None
    texts: list[str] = []
    for variables in renderings:
        try:
            texts.append(template.render(**variables))
        except MemoryError:
            raise
        except Exception as error:
            raise RenderError(f"cannot render a query and a document: {_reason(error)}") from None
        if len(texts[-1]) > OUTPUT_CHARS:
            raise RenderError(f"renders more than {OUTPUT_CHARS} characters")
    return texts


def _raise(message: str) -> None:
    raise ValueError(message)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= REASON_CHARS else f"{text[:REASON_CHARS]}…"


if __name__ == "__main__":
    _child()
