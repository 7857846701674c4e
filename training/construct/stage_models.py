"""The models of all stages before any of them is loaded: are they there, what are they, are they still the same."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..base.content_digest import RememberedDigests, files_below
from ..base.errors import ConfigError
from .construct_config import ConstructConfig
from .entity_extractors import load_spacy
from .model_files import custom_class, find_model, load

OWN_KINDS = {
    "caption": ("blip2", "given"),
    "entities": ("llm", "spacy"),
    "segment": ("clipseg", "grounded-sam2", "sam3"),
}


class StageModel(NamedTuple):
    """A model of transformers: what it is called in the settings, and the classes that will load it."""

    option: str
    model: str
    processor: str
    network: str


def _stage_models(config: ConstructConfig) -> Iterator[StageModel]:
    if config.caption.kind == "blip2":
        yield StageModel("caption.model", config.caption.model, "Blip2Processor", "Blip2ForConditionalGeneration")
    if config.entities.kind == "llm":
        yield StageModel("entities.model", config.entities.model, "AutoTokenizer", "AutoModelForCausalLM")
    if config.segment.kind == "clipseg":
        yield StageModel("segment.model", config.segment.model, "CLIPSegProcessor", "CLIPSegForImageSegmentation")
    if config.segment.kind == "grounded-sam2":
        network = "GroundingDinoForObjectDetection"
        yield StageModel("segment.detector", config.segment.detector, "AutoProcessor", network)
        yield StageModel("segment.model", config.segment.model, "Sam2Processor", "Sam2Model")
    if config.segment.kind == "sam3":
        yield StageModel("segment.model", config.segment.model, "Sam3Processor", "Sam3Model")


def check_models(config: ConstructConfig) -> None:
    """Open the models of all stages, but for their weights' values, before anything is done for hours.

    Raises:
        ConfigError: one is missing, cut short or of another kind.
    """
    wanted = list(_stage_models(config))
    folders = [find_model(one.model, one.option) for one in wanted]
    for section, kinds in OWN_KINDS.items():
        kind = getattr(config, section).kind
        if kind not in kinds:
            custom_class(kind, f"{section}.kind")
    if config.entities.kind == "spacy":
        load_spacy(config.entities.model)
    for one, folder in zip(wanted, folders, strict=True):
        _check(one, folder)


def _check(wanted: StageModel, folder: str) -> None:
    import transformers

    found = load(transformers.AutoConfig, folder, wanted.option)
    network = getattr(transformers, wanted.network)
    known = (
        type(found) in network._model_mapping
        if wanted.network.startswith("Auto")
        else found.model_type.startswith(network.config_class.model_type)  # sam2_video holds a sam2
    )
    reason = "" if known else f"it is a model of type {found.model_type}"
    reason = reason or _weights_problem(Path(folder))
    if reason:
        raise ConfigError(f"{wanted.option}: {folder} cannot be loaded as {wanted.network}: {reason}.")
    load(getattr(transformers, wanted.processor), folder, wanted.option)


def _weights_problem(folder: Path) -> str:
    """What is wrong with the weight files of a folder, without reading their values; "" where nothing is."""
    from safetensors import SafetensorError, safe_open

    names: set[str] = set()
    for index in folder.glob("*.index.json"):
        try:
            names |= set(json.loads(index.read_text())["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
            return f"{index.name} is no index of weight files"
    names = names or {path.name for path in (*folder.glob("*.safetensors"), *folder.glob("*.bin"))}
    if not names:
        return "it holds no weights (*.safetensors); fetch the model again"
    for name in sorted(names):
        path = folder / name
        if not path.is_file():
            return f"{name} is missing; fetch the model again"
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, framework="pt"):
                    pass
        except (SafetensorError, OSError) as error:
            return f"{name} is damaged ({error}); fetch the model again"
    return ""


def contents_of(config: ConstructConfig, digests: RememberedDigests) -> dict[str, str]:
    """Digests of what decides the result beside settings and input: models and the CSV, by the name of their option.

    What cannot be seen from here, such as models that only the nodes of a cluster have, is left out.
    """
    found: dict[str, Path] = {}
    for one in _stage_models(config):
        try:
            found[f"{one.option} {one.model}"] = Path(find_model(one.model, one.option))
        except ConfigError:
            continue
    if config.entities.kind == "spacy":
        name = config.entities.model
        package = importlib.util.find_spec(name) if name.isidentifier() else None
        path = Path(package.origin).parent if package and package.origin else Path(name)
        if path.is_dir():
            found[f"entities.model {name}"] = path
    if config.open_images and Path(config.open_images).is_file():
        found[f"open_images {config.open_images}"] = Path(config.open_images)
    groups = [files_below(path) for path in found.values()]
    return dict(zip(found, digests.of(groups), strict=True))
