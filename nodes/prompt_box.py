"""What the prompt box in the browser asks this server while somebody types: is the prompt right, and how long is it.

POST /kosmos_g/prompt with what `read_question` takes answers what `answer` returns. A file's tokenizer is read without
its weights, and nothing is kept of a text.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
from dataclasses import dataclass
from typing import Any

import folder_paths
import torch

from ..kosmos_core import Prompt, PromptError, Tokenizer
from ..kosmos_core.reference import Reference, View
from ..kosmos_core.safetensors_file import WeightsError, read_header
from ..kosmos_core.weights import read_tokenizer
from .file_lists import listed_files
from .image_inputs import SLOTS, PromptImages
from .loader import kosmos_files
from .routes import json_response, server_routes

LONGEST_TEXT = 20_000  # characters; far beyond what a model has places for
LONGEST_BODY = 16 * LONGEST_TEXT  # bytes


class QuestionError(ValueError):
    """A request that is not what the prompt box sends."""


@dataclass(frozen=True)
class Question:
    """Both texts of a prompt, the nouns of its connected images by slot, and the names of the files in its graph."""

    text: str
    negative: str
    nouns: dict[int, str]
    file: str
    checkpoint: str


def register_prompt_route() -> None:
    """Answer POST /kosmos_g/prompt; without a server there is nothing to do."""
    routes = server_routes()
    if routes is None:
        return

    @routes.post("/kosmos_g/prompt")
    async def prompt(request: Any) -> Any:
        try:
            question = read_question(_json(await _body(request)))
        except QuestionError as error:
            return json_response({"error": str(error)}, status=400)
        # Reading a vocabulary takes a second: not in the loop that serves everybody.
        found = await asyncio.get_running_loop().run_in_executor(None, answer, question)
        return json_response(found)


async def _body(request: Any) -> bytes:
    """The body of a request as it is after unpacking, which a few bytes can make much of; QuestionError beyond."""
    content = bytearray()
    if request.content_length is not None and request.content_length <= LONGEST_BODY:
        async for part in request.content.iter_chunked(LONGEST_BODY):
            content += part
            if len(content) > LONGEST_BODY:
                break
        else:
            return bytes(content)
    raise QuestionError(f"The request has more than {LONGEST_BODY:,} bytes, or does not say how many.")


def _json(content: bytes) -> Any:
    """A body's value, by no encoding that a request may name: Python's table of them holds some without a bound."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise QuestionError(f"The request is not JSON ({error}).") from error


def read_question(body: Any) -> Question:
    """The request's {text, negative, images: {slot: noun}, file, checkpoint}; QuestionError where it is another."""
    if not isinstance(body, dict):
        raise QuestionError("The request is no JSON object: expected text, negative, images, file and checkpoint.")
    texts = {name: body.get(name, "") for name in ("text", "negative", "file", "checkpoint")}
    for name, text in texts.items():
        if not isinstance(text, str) or len(text) > LONGEST_TEXT:
            raise QuestionError(f"{name} is no text of at most {LONGEST_TEXT:,} characters: nothing was counted.")
    images = body.get("images", {})
    slots = {str(slot): slot for slot in range(1, SLOTS + 1)}
    if not isinstance(images, dict) or not all(slot in slots and isinstance(images[slot], str) for slot in images):
        raise QuestionError(f"images is no object of nouns by slot, 1 to {SLOTS}.")
    return Question(**texts, nouns={number: images[slot] for slot, number in slots.items() if slot in images})


def answer(question: Question) -> dict[str, Any]:
    """What is shown: `tokens` and `negative_tokens` (None where no tokenizer is at hand, `remark` says why), `error`
    ({box, reason, position}, None where the prompt can be read), `remarks` on what is read as text and means something
    in other tools, and `width`, which the checkpoint's U-Net reads (None where that is unknown)."""
    found: dict[str, Any] = {"tokens": None, "negative_tokens": None, "error": None, "remark": None, "remarks": []}
    found["width"] = condition_width(question.checkpoint)
    try:
        references = tuple(Reference(_no_image(slot), noun=noun.strip()) for slot, noun in question.nouns.items())
        images = PromptImages(tuple(question.nouns), (references,))
        (prompt, *_), (negative, *_) = images.parse_both(question.text, question.negative)
        found["remarks"] = images.remarks(question.text, question.negative)
    except PromptError as error:
        box = "negative" if error.prompt == question.negative and error.prompt != question.text else "text"
        return {**found, "error": {"box": box, "reason": error.reason, "position": error.position}}
    except ValueError as error:  # a noun that is none
        return {**found, "error": {"box": "text", "reason": str(error), "position": 0}}
    try:
        tokenizer = tokenizer_of(question.file)
    except (WeightsError, OSError) as error:
        return {**found, "remark": str(error).replace(kosmos_files().get(question.file, "\0"), question.file)}
    if tokenizer is not None:
        found["tokens"], found["negative_tokens"] = (_length(tokenizer, part) for part in (prompt, negative))
    return found


def _no_image(slot: int) -> View:
    """A picture of its own for each slot: nothing is encoded here, and only the graph knows what is alike."""
    return View(torch.full((1, 1, 3), slot, dtype=torch.uint8))


def _length(tokenizer: Tokenizer, prompt: Prompt) -> int:
    return len(tokenizer.layout(prompt).token_ids)


def tokenizer_of(file: str) -> Tokenizer | None:
    """The tokenizer in a Kosmos-G file of the searched folders, None where there is none; WeightsError if broken."""
    path = kosmos_files().get(file)
    if path is None:
        return None
    status = os.stat(path)
    return _tokenizer(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=2)
def _tokenizer(path: str, modified: int, size: int) -> Tokenizer | None:
    """Kept until the file changes."""
    return read_tokenizer(path)


def condition_width(checkpoint: str) -> int | None:
    """Width of the conditioning that the U-Net of a checkpoint reads: 768 in Stable Diffusion 1, 1024 in 2, 2048 in XL.

    From the file's header; None where the file has no such U-Net or is no safetensors file.
    """
    if checkpoint not in listed_files("checkpoints"):
        return None
    path = folder_paths.get_full_path("checkpoints", checkpoint)
    try:
        status = os.stat(path)
        return _condition_width(path, status.st_mtime_ns, status.st_size)
    except (WeightsError, OSError, TypeError):
        return None


@functools.lru_cache(maxsize=64)
def _condition_width(path: str, modified: int, size: int) -> int | None:
    shapes = read_header(path).shapes
    keys = (shape for name, shape in shapes.items() if name.startswith("model.") and name.endswith("attn2.to_k.weight"))
    return next((shape[1] for shape in keys if len(shape) == 2), None)
