"""Training begins from any Kosmos-G file, from Kosmos-2, or from CLIP's vision tower, and says what came from where."""

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import Unigram
from transformers import CLIPVisionConfig, CLIPVisionModel, Kosmos2Config, Kosmos2ForConditionalGeneration

from kosmos_core import KosmosG, KosmosGConfig, Tokenizer, load_model, save_model
from training.engine.run_config import RunConfig
from training.weights.foreign import is_kosmos2, read_tensors
from training.weights.warm_start import start_model

TAGS = ("<mask>", "</doc>", "<image>", "</image>", "</chunk>", "</line>", "<phrase>", "</phrase>")


@pytest.fixture(scope="module")
def tokenizer_folder(tiny_tokenizer_files, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vocabulary")
    shutil.copy(tiny_tokenizer_files[0], folder / "sentencepiece.bpe.model")
    shutil.copy(tiny_tokenizer_files[1], folder / "dict.txt")
    return folder


@pytest.fixture(scope="module")
def sizes(tiny_tokenizer) -> KosmosGConfig:
    return KosmosGConfig.tiny(vocabulary=tiny_tokenizer.vocabulary)


def _sizes(sizes: KosmosGConfig, stage: str) -> KosmosGConfig:
    if stage == "lm":
        return dataclasses.replace(sizes, aligner=None)
    return dataclasses.replace(sizes, aligner=dataclasses.replace(sizes.aligner, reconstruction=stage == "align"))


def _run(stage: str, sizes: KosmosGConfig, **values) -> RunConfig:
    return RunConfig(stage=stage, run_folder="unused", model=_sizes(sizes, stage), **values)


def _weights_file(stage: str, sizes: KosmosGConfig, tokenizer: Tokenizer | None, folder: Path) -> Path:
    model = KosmosG(_sizes(sizes, stage), tokenizer=tokenizer).initialize(5)
    save_model(model, folder / f"{stage}.safetensors", stage=stage)
    return folder / f"{stage}.safetensors"


def _equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("target", ["lm", "align", "instruct"])
@pytest.mark.parametrize("source", ["lm", "align", "instruct"])
def test_any_stage_begins_from_a_file_of_any_stage(sizes, tiny_tokenizer, tmp_path, source, target):
    path = _weights_file(source, sizes, tiny_tokenizer, tmp_path)
    stored = load_model(path)
    model, notes = start_model(_run(target, sizes, weights=str(path), seed=7), "cpu")
    fresh = KosmosG(_sizes(sizes, target)).initialize(7)
    for part in ("vision", "resampler", "decoder"):
        assert _equal(getattr(model, part), getattr(stored, part)), part
    if target != "lm":
        for part in ("source_encoder", "query_decoder"):
            origin = fresh if source == "lm" else stored
            assert _equal(getattr(model.aligner, part), getattr(origin.aligner, part)), part
    if target == "align":
        origin = stored if source == "align" else fresh
        assert _equal(model.aligner.reconstruction_decoder, origin.aligner.reconstruction_decoder)
    assert model.tokenizer.encode("a red dog") == tiny_tokenizer.encode("a red dog")
    said = "\n".join(notes)
    halves = {"lm": set(), "align": {"M", "N"}, "instruct": {"M"}}
    assert ("initialised anew: aligner." in said) == bool(halves[target] - halves[source])
    assert ("not used, such as aligner." in said) == bool(halves[source] - halves[target])


def test_a_new_model_is_the_initialisation_of_its_seed(sizes, tokenizer_folder):
    model, notes = start_model(_run("align", sizes, tokenizer=str(tokenizer_folder), seed=3), "cpu")
    assert _equal(model, KosmosG(_sizes(sizes, "align")).initialize(3))
    assert notes == ["weights: none given, initialised from seed 3"]


def test_on_the_meta_device_only_shapes_are_built(sizes, tokenizer_folder):
    model, _ = start_model(_run("lm", sizes, tokenizer=str(tokenizer_folder)), "meta")
    assert all(p.is_meta for p in model.parameters())
    assert len(model.tokenizer.encode("a dog")) > 1


def test_half_precision_weights_become_float32(sizes, tiny_tokenizer, tmp_path):
    model = KosmosG(_sizes(sizes, "lm"), tokenizer=tiny_tokenizer).initialize(5)
    save_model(model, tmp_path / "half.safetensors", stage="lm", dtype=torch.bfloat16)
    started, _ = start_model(_run("lm", sizes, weights=str(tmp_path / "half.safetensors")), "cpu")
    assert {p.dtype for p in started.parameters()} == {torch.float32}
    assert torch.equal(started.decoder.norm.weight, model.decoder.norm.weight)


def _wrong(problem: str, sizes, tokenizer, tokenizer_folder, tmp_path) -> RunConfig:
    path = _weights_file("lm", sizes, None if problem == "no tokenizer" else tokenizer, tmp_path)
    run = _run("lm", sizes, weights=str(path))
    if problem == "sizes":
        run.model = dataclasses.replace(run.model, decoder=dataclasses.replace(run.model.decoder, layers=3))
    elif problem == "missing":
        run.weights = str(tmp_path / "absent.safetensors")
    elif problem == "other kind":
        save_file({"lora_unet.lora_up.weight": torch.zeros(2)}, path)
    elif problem == "vocabulary":
        run.model = dataclasses.replace(run.model, decoder=dataclasses.replace(run.model.decoder, vocabulary=64007))
        run.weights, run.tokenizer = None, str(tokenizer_folder)
    elif problem == "other pieces":
        other = tmp_path / "other"
        other.mkdir()
        shutil.copy(tokenizer_folder / "sentencepiece.bpe.model", other)
        lines = (tokenizer_folder / "dict.txt").read_text().splitlines()
        (other / "dict.txt").write_text("\n".join(lines[::-1]))
        run.tokenizer = str(other)
    elif problem == "empty folder":
        run.tokenizer = str(tmp_path / "nowhere")
    elif problem == "two models":
        shutil.copytree(tokenizer_folder, tmp_path / "two")
        shutil.copy(tokenizer_folder / "sentencepiece.bpe.model", tmp_path / "two/another.model")
        run.tokenizer = str(tmp_path / "two")
    elif problem == "not kosmos-2":
        run.weights, run.tokenizer = str(tokenizer_folder), None
    return run


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        ("no tokenizer", "tokenizer: none given"),
        ("sizes", "--model.decoder.layers 2"),
        ("missing", "absent.safetensors"),
        ("other kind", "a LoRA"),
        ("vocabulary", "set model.decoder.vocabulary"),
        ("other pieces", "numbers other pieces"),
        ("empty folder", "must hold one SentencePiece model"),
        ("two models", "found: another.model, sentencepiece.bpe.model"),
        ("not kosmos-2", "is no Kosmos-2 model"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_sentence(sizes, tiny_tokenizer, tokenizer_folder, tmp_path, problem, said):
    run = _wrong(problem, sizes, tiny_tokenizer, tokenizer_folder, tmp_path)
    with pytest.raises(ValueError, match=said):
        start_model(run, "cpu")


# -- Kosmos-2


@pytest.fixture(scope="module")
def kosmos2_folder(tiny_tokenizer, tmp_path_factory) -> Path:
    """A tiny random Kosmos-2: our pieces in another order, without the last ten, and two tags of its own."""
    folder = tmp_path_factory.mktemp("kosmos2")
    ordinary = [tiny_tokenizer.piece(n) for n in range(4, tiny_tokenizer.vocabulary - 6)]
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *ordinary[:-10][::-1]]
    fast = FastTokenizer(Unigram([(piece, -float(n)) for n, piece in enumerate(pieces)], unk_id=3))
    fast.add_special_tokens([AddedToken(tag) for tag in TAGS])
    fast.save(str(folder / "tokenizer.json"))
    vision = {"image_size": 224, "patch_size": 56, "hidden_size": 32, "intermediate_size": 64}
    text = {"embed_dim": 32, "layers": 2, "ffn_dim": 64, "attention_heads": 2, "max_position_embeddings": 64}
    config = Kosmos2Config(
        text_config={**text, "vocab_size": len(pieces) + len(TAGS)},
        vision_config={**vision, "num_hidden_layers": 2, "num_attention_heads": 2},
        latent_query_num=4,
    )
    torch.manual_seed(0)
    model = Kosmos2ForConditionalGeneration(config)
    with torch.no_grad():  # biases and norms of a new model are all 0 and 1: they would prove nothing
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        model.text_model.model.embed_tokens.weight[1] = 0
    model.save_pretrained(folder)
    return folder


def _image_prompt(ids: dict[str, int], words: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Two pieces, a picture, the other pieces."""
    image = [ids["<image>"]] * 5 + [ids["</image>"]]
    tokens = [ids["<s>"], *(ids[word] for word in words[:2]), *image, *(ids[word] for word in words[2:])]
    mask = torch.zeros(1, len(tokens), dtype=torch.bool)
    mask[0, 4:8] = True
    return torch.tensor([tokens]), mask


@torch.no_grad()
def test_kosmos2_gives_the_same_hidden_states_and_scores(kosmos2_folder, tokenizer_folder, tiny_tokenizer, sizes):
    run = _run("lm", sizes, weights=str(kosmos2_folder), tokenizer=str(tokenizer_folder))
    model, notes = start_model(run, "cpu")
    original = Kosmos2ForConditionalGeneration.from_pretrained(kosmos2_folder).eval()
    theirs = FastTokenizer.from_file(str(kosmos2_folder / "tokenizer.json")).get_vocab()
    ours = {tiny_tokenizer.piece(n): n for n in range(tiny_tokenizer.vocabulary)}
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))

    words = [tiny_tokenizer.piece(number) for number in tiny_tokenizer.encode("a red dog swimming in the sea")]
    words = [word for word in words if word in theirs]
    assert len(words) > 5
    ids, mask = _image_prompt(theirs, words)
    expected = original(pixel_values=pixels, input_ids=ids, image_embeds_position_mask=mask, output_hidden_states=True)
    ids, mask = _image_prompt(ours, words)
    model.eval()
    torch.testing.assert_close(model.embed_images(pixels), expected.image_embeds, rtol=0, atol=2e-5)
    hidden = model.hidden_states(ids, mask, model.embed_images(pixels))
    scale = float(expected.logits.abs().max())
    shared = [piece for piece in theirs if piece in ours]
    found = model.logits(hidden)[..., [ours[piece] for piece in shared]]
    wanted = expected.logits[..., [theirs[piece] for piece in shared]]
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5 * scale)
    assert len(shared) == tiny_tokenizer.vocabulary - 10

    said = "\n".join(notes)
    assert f"{len(shared)} of {tiny_tokenizer.vocabulary} pieces taken over by name" in said
    assert "2 of Kosmos-2's not used" in said
    assert "10 pieces initialised anew" in said
    assert "tensors not used" not in said


def test_kosmos2_pieces_that_are_missing_keep_their_initialisation(kosmos2_folder, tokenizer_folder, sizes):
    run = _run("lm", sizes, weights=str(kosmos2_folder), tokenizer=str(tokenizer_folder), seed=4)
    model, _ = start_model(run, "cpu")
    fresh = KosmosG(run.model).initialize(4)
    kept = (model.decoder.embedding.weight == fresh.decoder.embedding.weight).all(dim=1)
    assert int(kept.sum()) == 11  # the ten and the pad row, which is zero everywhere
    assert bool(kept[-16:-6].all())


def test_kosmos2_folder_of_another_size_is_refused(kosmos2_folder, tokenizer_folder, sizes):
    run = _run("lm", sizes, weights=str(kosmos2_folder), tokenizer=str(tokenizer_folder))
    run.model = dataclasses.replace(run.model, decoder=dataclasses.replace(run.model.decoder, ffn_width=128))
    with pytest.raises(ValueError, match="choose the preset and model sizes"):
        start_model(run, "cpu")


@pytest.mark.parametrize("part", ["decoder", "resampler"])
def test_kosmos2s_heads_are_those_of_the_language_model_and_of_the_resampler(
    kosmos2_folder, tokenizer_folder, sizes, part
):
    run = _run("lm", sizes, weights=str(kosmos2_folder), tokenizer=str(tokenizer_folder))
    run.model = dataclasses.replace(run.model, **{part: dataclasses.replace(getattr(run.model, part), heads=4)})
    with pytest.raises(ValueError, match=r"has 2 attention heads; set model\.decoder\.heads and model\.resampler"):
        start_model(run, "cpu")


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_the_shards_of_a_folder_are_one_model(tmp_path, ending):
    name = {"safetensors": "model", "bin": "pytorch_model"}[ending]
    for number in range(3):
        write = save_file if ending == "safetensors" else torch.save
        write({f"x{number}": torch.full((2,), float(number))}, tmp_path / f"{name}-0000{number}-of-00002.{ending}")
    assert {key: tensor[0].item() for key, tensor in read_tensors(tmp_path).items()} == {"x0": 0, "x1": 1, "x2": 2}


# -- CLIP's vision tower


@pytest.fixture(scope="module")
def clip() -> CLIPVisionModel:
    torch.manual_seed(2)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return CLIPVisionModel(CLIPVisionConfig(image_size=224, patch_size=56, hidden_act="quick_gelu", **sizes)).eval()


def _open_clip(clip: CLIPVisionModel) -> dict[str, torch.Tensor]:
    """The same tower under open_clip's names."""
    weights = {}
    single = {"class_embedding": "class_embedding", "patch_embedding.weight": "conv1.weight"}
    single |= {"position_embedding.weight": "positional_embedding"}
    inner = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    inner |= {"self_attn.out_proj": "attn.out_proj"}
    state = {name.removeprefix("vision_model."): tensor for name, tensor in clip.state_dict().items()}
    for name, tensor in state.items():
        if name.startswith("embeddings."):
            if (short := name.removeprefix("embeddings.")) in single:
                weights[f"visual.{single[short]}"] = tensor
        elif name.startswith("encoder.layers."):
            _, _, number, rest = name.split(".", 3)
            part, kind = rest.rsplit(".", 1)
            if part in inner:
                weights[f"visual.transformer.resblocks.{number}.{inner[part]}.{kind}"] = tensor
            elif part == "self_attn.q_proj":
                three = [state[f"encoder.layers.{number}.self_attn.{p}_proj.{kind}"] for p in "qkv"]
                weights[f"visual.transformer.resblocks.{number}.attn.in_proj_{kind}"] = torch.cat(three)
        else:
            weights["visual." + name.replace("pre_layrnorm", "ln_pre").replace("post_layernorm", "ln_post")] = tensor
    return weights | {"visual.proj": torch.zeros(32, 16), "logit_scale": torch.zeros(())}


@pytest.mark.parametrize("layout", ["transformers folder", "transformers file", "open_clip", "open_clip pt"])
@torch.no_grad()
def test_clip_vision_weights_give_clips_features(clip, sizes, tokenizer_folder, tmp_path, layout):
    path = tmp_path / "clip"
    if layout == "transformers folder":
        clip.save_pretrained(path)
    elif layout == "transformers file":
        clip.save_pretrained(path)
        weights = load_file(path / "model.safetensors")
        path = tmp_path / "clip_vision.safetensors"
        save_file({"vision_model." + k.removeprefix("vision_model."): v for k, v in weights.items()}, path)
    elif layout == "open_clip":
        path = tmp_path / "open_clip.safetensors"
        save_file(_open_clip(clip), path)
    else:
        path = tmp_path / "open_clip.pt"
        torch.save({"state_dict": _open_clip(clip)}, path)
    run = _run("lm", sizes, tokenizer=str(tokenizer_folder))
    model, notes = start_model(run, "cpu", vision_weights=str(path))
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    tower = getattr(clip, "vision_model", clip)
    expected = torch.nn.functional.normalize(tower.post_layernorm(clip(pixels).last_hidden_state), dim=-1)
    torch.testing.assert_close(model.vision(pixels), expected, rtol=0, atol=2e-6)
    assert len(list(model.vision.parameters())) == 39
    assert f"vision: {path}: 39 tensors for vision" in notes


def test_a_file_without_a_vision_tower_is_refused(sizes, tokenizer_folder, tmp_path):
    save_file({"logit_scale": torch.zeros(1)}, tmp_path / "text.safetensors")
    run = _run("lm", sizes, tokenizer=str(tokenizer_folder))
    with pytest.raises(ValueError, match="holds no CLIP vision tower"):
        start_model(run, "cpu", vision_weights=str(tmp_path / "text.safetensors"))


def test_a_description_of_something_else_is_no_kosmos2(tmp_path):
    for content in ("[]", "[" * 200_000, "3"):
        (tmp_path / "config.json").write_text(content)
        assert not is_kosmos2(tmp_path)


def test_a_file_of_something_else_is_no_weights(tmp_path):
    (tmp_path / "clip.bin").write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"clip\.bin cannot be read as weights"):
        read_tensors(tmp_path / "clip.bin")


def test_a_missing_folder_is_named_with_the_command_that_fetches_it(tmp_path):
    config = SimpleNamespace(weights=str(tmp_path / "kosmos-2"), model=None, tokenizer=None, seed=0)
    with pytest.raises(ValueError, match=r"kosmos-2 does not exist.*hf download .*--local-dir .*kosmos-2"):
        start_model(config, "cpu")
