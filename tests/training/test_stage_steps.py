"""What the engine relies on in a stage: what trains, how losses add up, which numbers are drawn, what is shown."""

import dataclasses
import itertools
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from kosmos_core import KosmosG, KosmosGConfig, Tokenizer
from tests.tiny.clip import save_clip, save_dino
from tests.tiny.stable_diffusion import tiny_parts
from training.base.errors import ConfigError
from training.base.rng import RowRng
from training.data.batch_stream import BatchStream
from training.evaluate.feature_networks import FeatureNets
from training.stages import align, instruct, lm
from training.stages.alignment_loss import squared_errors, token_weights
from training.stages.caption_replay import ReplayStream
from training.stages.instruct_config import Preview, PreviewPrompt, Replay
from training.stages.losses import Losses
from training.stages.preview import grid, prompt_batch, sample_images
from training.stages.preview_figures import networks, preview_figures

ROWS = 4


@pytest.fixture(scope="module")
def sizes(tiny_tokenizer: Tokenizer) -> KosmosGConfig:
    return KosmosGConfig.tiny(vocabulary=tiny_tokenizer.vocabulary, reconstruction=True)


@pytest.fixture(scope="module")
def parts():
    made = tiny_parts()
    for name in ("unet", "vae", "text_encoder"):
        made[name].requires_grad_(False).eval()
    return made


@pytest.fixture
def stages(sizes, parts, tiny_tokenizer):
    """The three stages on tiny models, by name."""

    def model(reconstruction: bool) -> KosmosG:
        aligner = dataclasses.replace(sizes.aligner, reconstruction=reconstruction)
        return KosmosG(dataclasses.replace(sizes, aligner=aligner), tokenizer=tiny_tokenizer).initialize(0)

    frozen = {"unet": parts["unet"], "vae": parts["vae"]}
    return {
        "lm": lm.LmStage(model(False), lm.Config(), None, []),
        "align": align.AlignStage(model(True), align.Config(), None, None, [], {"clip": parts["text_encoder"]}),
        "instruct": instruct.InstructStage(model(True), instruct.Config(), None, parts["scheduler"], [], frozen),
    }


def _batch(stage: str, tokenizer: Tokenizer) -> dict:
    """Four rows of equal length, one picture in the second and two in the last."""
    random = torch.Generator().manual_seed(1)
    length = 3 + 2 * (tokenizer.latents + 2)
    token_ids = torch.randint(4, tokenizer.ids.image_start, (ROWS, length), generator=random)
    token_ids[:, 0] = 0
    mask = torch.zeros(ROWS, length, dtype=torch.bool)
    image = torch.tensor([tokenizer.ids.image_start] * (tokenizer.latents + 1) + [tokenizer.ids.image_end])
    for row, place in ((1, 2), (3, 1), (3, 1 + len(image))):
        token_ids[row, place : place + len(image)] = image
        mask[row, place + 1 : place + len(image) - 1] = True
    named = {"keys": list("abcd"), "sources": ["one", "two", "one", "two"]}
    if stage == "align":
        clip_ids = torch.randint(0, 298, (ROWS, 77), generator=random)
        return {"token_ids": token_ids, "clip_ids": clip_ids, **named}
    batch = {"token_ids": token_ids, "image_mask": mask, **named}
    batch["pixels"] = torch.randn(3, 3, 224, 224, generator=random)
    if stage == "lm":
        ids = tokenizer.ids
        return batch | {"loss_mask": ~mask & (token_ids != ids.image_start) & (token_ids != ids.image_end)}
    return batch | {"target": torch.rand(ROWS, 3, 16, 16, generator=random) * 2 - 1}


def _rows(batch: dict, start: int, stop: int) -> dict:
    cut = {name: values if name == "pixels" else values[start:stop] for name, values in batch.items()}
    if "pixels" in batch:
        before = [0, 0, 1, 1, 3]
        cut["pixels"] = batch["pixels"][before[start] : before[stop]]
    return cut


@pytest.mark.parametrize("stage", ["lm", "align", "instruct"])
@torch.no_grad()
def test_losses_of_a_batch_are_the_sums_over_its_parts_wherever_it_is_cut(stages, tiny_tokenizer, stage):
    task, batch = stages[stage], _batch(stage, tiny_tokenizer)
    task.model.eval()
    whole = task.training_step(task.model, batch, RowRng(seed=3, step=5))
    assert float(whole.count) == (ROWS if stage != "lm" else float(batch["loss_mask"][:, 1:].sum()))
    for cuts in ((0, 2, 4), (0, 1, 4), (0, 1, 2, 3, 4)):
        pieces = [
            task.training_step(task.model, _rows(batch, a, b), RowRng(seed=3, step=5, first_row=a))
            for a, b in itertools.pairwise(cuts)
        ]
        assert sum(float(piece.total) for piece in pieces) == pytest.approx(float(whole.total), rel=1e-5)
        for name, (total, count) in whole.parts.items():
            found = [piece.parts[name] for piece in pieces if name in piece.parts]
            assert sum(float(values[0]) for values in found) == pytest.approx(float(total), rel=1e-5), name
            assert sum(float(values[1]) for values in found) == float(count), name
    assert {"one", "two"} <= set(whole.parts)


def test_sources_and_named_values_become_parts():
    losses = Losses.of_rows(
        torch.tensor([1.0, 2.0, 4.0]), ["a", "b", "a"], torch.tensor([1, 1, 3]), mse=torch.tensor([1.0, 1.0, 1.0])
    )
    assert {name: tuple(map(float, values)) for name, values in losses.parts.items()} == {
        "a": (5, 4),
        "b": (2, 1),
        "mse": (3, 5),
    }
    assert (float(losses.total), float(losses.count)) == (7, 5)


@pytest.mark.parametrize(
    ("stage", "trained"),
    [
        ("lm", ("decoder.", "resampler.", "vision.blocks.1.", "vision.norm_post.")),
        ("align", ("aligner.",)),
        (
            "instruct",
            (
                "decoder.",
                "resampler.",
                "aligner.source_encoder.",
                "aligner.query_decoder.",
                "vision.blocks.1.",
                "vision.norm_post.",
            ),
        ),
    ],
)
def test_exactly_the_named_parts_train_and_all_are_in_train_mode(stages, tiny_tokenizer, stage, trained):
    task = stages[stage]
    task.set_trainable()
    assert all(module.training for module in task.model.modules())
    task.training_step(task.model, _batch(stage, tiny_tokenizer), RowRng(seed=0, step=0)).total.backward()
    for name, parameter in task.model.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None) == name.startswith(trained), name


@pytest.mark.parametrize("probability", [0.0, 1.0])
@torch.no_grad()
def test_null_probability_of_stage_three_is_the_share_of_null_conditions(stages, tiny_tokenizer, probability):
    task, batch = stages["instruct"], _batch("instruct", tiny_tokenizer)
    task.model.eval()
    task.task.null_probability = probability
    losses = task.training_step(task.model, batch, RowRng(seed=0, step=0))
    other = batch | {"token_ids": batch["token_ids"].clone()}
    other["token_ids"][0, 1:] = other["token_ids"][2, 1:]
    changed = task.training_step(task.model, other, RowRng(seed=0, step=0))
    assert (float(losses.total) == float(changed.total)) == (probability == 1.0)


@torch.no_grad()
def test_a_tenth_of_the_conditions_is_null_whatever_noise_and_timestep_are(stages, tiny_tokenizer, monkeypatch):
    """What the stage itself draws, over many steps."""
    task, batch, drawn = stages["instruct"], _batch("instruct", tiny_tokenizer), []

    def seen(model, unet, scheduler, batch, noise, timesteps, drop):
        drawn.append((noise[:, 0, 0, 0], timesteps.double(), drop.double()))
        return torch.zeros(ROWS), None

    monkeypatch.setattr(instruct, "sample_losses", seen)
    for step in range(500):
        task.training_step(task.model, batch, RowRng(seed=0, step=step))
    noise, timesteps, drop = (torch.cat(values) for values in zip(*drawn, strict=True))
    assert float(drop.mean()) == pytest.approx(0.1, abs=0.02)
    together = torch.corrcoef(torch.stack([noise.double(), timesteps, drop]))
    assert float((together - torch.eye(3)).abs().max()) < 0.08  # 3.5 of 2,000 draws' standard deviations
    for purpose in ("noise", "timestep", "latents"):  # their numbers again, even where no correlation shows it
        again = torch.cat([RowRng(seed=0, step=step).uniform(purpose, ROWS) for step in range(50)]) < 0.1
        assert not torch.equal(again.double(), drop[: len(again)])


@torch.no_grad()
def test_bounds_of_the_signal_to_noise_ratio_weigh_each_sample_by_its_timestep(stages, tiny_tokenizer):
    task, rng = stages["instruct"], RowRng(seed=0, step=0)
    task.model.eval()
    batch = _batch("instruct", tiny_tokenizer) | {"sources": list("abcd")}
    plain = task.training_step(task.model, batch, rng).parts
    task.task.snr_bounds = (0.01, 0.5)
    weighted = task.training_step(task.model, batch, rng).parts
    signal = task.scheduler.alphas_cumprod[rng.integers("timestep", 1000, ROWS)]
    ratio = signal / (1 - signal)
    assert ratio.min() < 0.01 < 0.5 < ratio.max()
    for row, source in enumerate("abcd"):
        expected = ratio[row].clamp(0.01, 0.5) / ratio[row]
        assert float(weighted[source][0] / plain[source][0]) == pytest.approx(float(expected), rel=1e-4)


@torch.no_grad()
def test_alignment_of_stage_three_adds_the_error_of_the_rows_that_have_a_caption(stages, parts, tiny_tokenizer):
    task, rng, batch = stages["instruct"], RowRng(seed=0, step=0), _batch("instruct", tiny_tokenizer)
    task.model.eval()
    plain = task.training_step(task.model, batch, rng)
    task.task.alignment, task.clip_tokenizer, task.frozen["clip"] = 0.5, "given", parts["text_encoder"]
    without = task.training_step(task.model, batch, rng)
    assert float(without.total) == float(plain.total), "no row has a caption"
    captioned = torch.tensor([False, True, False, True])
    clip_ids = torch.randint(0, 298, (2, 77), generator=torch.Generator().manual_seed(2))
    losses = task.training_step(task.model, batch | {"captioned": captioned, "clip_ids": clip_ids}, rng)
    features = task.model.embed_images(batch["pixels"])
    conditions = task.model.encode_tokens(batch["token_ids"], image_mask=batch["image_mask"], image_features=features)
    states = parts["text_encoder"](clip_ids).last_hidden_state
    expected = (conditions[captioned] - states).square().mean((1, 2)).sum()
    assert float(losses.parts["mse"][0]) == pytest.approx(float(expected), rel=1e-4)
    assert float(losses.parts["diffusion"][0]) == pytest.approx(float(plain.total), rel=1e-6)
    assert float(losses.total) == pytest.approx(float(plain.total + 0.5 * expected), rel=1e-5)


@torch.no_grad()
def test_replayed_captions_add_their_mean_error_for_each_row(stages, parts, tiny_tokenizer):
    task, rng, batch = stages["instruct"], RowRng(seed=0, step=0), _batch("instruct", tiny_tokenizer)
    task.model.eval()
    plain = task.training_step(task.model, batch, rng)
    task.task.replay, task.frozen["clip"] = Replay("captions", weight=0.3), parts["text_encoder"]
    clip_ids = torch.randint(0, 298, (2, 77), generator=torch.Generator().manual_seed(2))
    ids = torch.tensor([[0, 9, 8, 7], [0, 5, 1, 1]])
    losses = task.training_step(task.model, batch | {"replay_ids": ids, "replay_clip_ids": clip_ids}, rng)
    errors = (task.model.encode_tokens(ids) - parts["text_encoder"](clip_ids).last_hidden_state).square().mean((1, 2))
    assert float(losses.total) == pytest.approx(float(plain.total + ROWS * 0.3 * errors.mean()), rel=1e-5)
    assert tuple(map(float, losses.parts["replay"])) == pytest.approx((float(errors.sum()), 2), rel=1e-5)
    assert losses.count == plain.count
    assert losses.parts["one"] == plain.parts["one"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"captions": "c", "weight": 0.0}, "task.replay.weight: 0.0 must be above 0"),
        ({"captions": "c", "share": float("nan")}, "task.replay.share: nan must be above 0"),
        ({"weight": 0.2}, "task.replay.weight: 0.2, but there is nothing to replay; name a data set"),
    ],
)
def test_a_replay_that_cannot_be_gets_a_sentence(settings, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        Replay(**settings)


def test_a_replay_has_at_least_one_caption_in_a_micro_batch():
    assert [Replay("captions", share=0.25).rows(rows) for rows in (1, 2, 16)] == [1, 1, 4]
    assert Replay().rows(16) == 0


def test_padding_weight_is_that_of_the_tokens_behind_a_caption():
    ids = torch.tensor([[7, 3, 4, 9, 9, 9], [7, 3, 4, 5, 6, 9]])
    assert token_weights(ids, 0.5).tolist() == [[1, 1, 1, 1, 0.5, 0.5], [1] * 6]
    assert token_weights(ids, 1.0) is None
    found = torch.arange(12.0).reshape(2, 6, 1).expand(-1, -1, 3)
    errors = squared_errors(found, torch.zeros_like(found), token_weights(ids, 0.0))
    assert errors.tolist() == pytest.approx([(0 + 1 + 4 + 9) / 4, sum(n * n for n in range(6, 12)) / 6])


@torch.no_grad()
def test_stage_two_weighs_the_padding_of_its_captions(stages, tiny_tokenizer):
    task, rng, batch = stages["align"], RowRng(seed=0, step=0), _batch("align", tiny_tokenizer)
    batch["clip_ids"][:, 20:] = 299
    task.model.eval()
    plain = task.training_step(task.model, batch, rng).parts
    task.task.padding_weight = 0.0
    words = task.training_step(task.model, batch, rng).parts
    hidden = task.model(batch["token_ids"], None, None, output="hidden")
    condition = task.model.align(hidden, batch["token_ids"] == 1)
    states = task.frozen["clip"](batch["clip_ids"]).last_hidden_state
    errors = (condition - states).square().mean(2)
    assert float(words["mse"][0]) == pytest.approx(float(errors[:, :21].mean(1).sum()), rel=1e-4)
    assert float(plain["mse"][0]) == pytest.approx(float(errors.mean(1).sum()), rel=1e-4)
    assert words["rec"][0] == plain["rec"][0]


@pytest.mark.parametrize(
    ("stage", "key"), [(instruct, "alignment"), (instruct, "padding_weight"), (align, "padding_weight")]
)
def test_negative_weights_get_a_sentence(stage, key):
    with pytest.raises(ValueError, match=rf"task\.{key}: -1 must be 0 or more"):
        stage.Config(**{key: -1})


class Counted(BatchStream):
    """A stream of numbers under a name, and how many of them were given."""

    def __init__(self, name):
        self.name, self.given = name, 0

    def __next__(self):
        self.given += 1
        return {"token_ids": f"{self.name} {self.given}", "clip_ids": f"CLIP's {self.name} {self.given}"}

    def state_dict(self):
        return {"number": self.given}

    def load_state_dict(self, state):
        self.given = state["number"]


def test_rows_and_replayed_captions_go_on_where_a_checkpoint_left_each():
    stream = ReplayStream(Counted("row"), Counted("caption"))
    for _ in range(3):
        next(stream)
    next(stream.captions)
    state, old = stream.state_dict(), {"number": 7}
    expected = {"token_ids": "row 4", "clip_ids": "CLIP's row 4"}
    expected |= {"replay_ids": "caption 5", "replay_clip_ids": "CLIP's caption 5"}
    resumed = ReplayStream(Counted("row"), Counted("caption"))
    resumed.load_state_dict(state)
    assert next(resumed) == next(stream) == expected
    resumed = ReplayStream(Counted("row"), Counted("caption"))
    resumed.load_state_dict(old)  # of a run that had no captions yet
    assert (next(resumed)["token_ids"], resumed.captions.given) == ("row 8", 1)


# -- the preview of stage 3


def test_prompts_of_the_preview_are_sampled_alike_each_time_and_differ_by_picture(stages, tmp_path: Path):
    task = stages["instruct"]
    for colour in ("red", "blue"):
        Image.new("RGB", (50, 40), colour).save(tmp_path / f"{colour}.png")
    prompts = [PreviewPrompt("a dog <i>", [str(tmp_path / f"{colour}.png")]) for colour in ("red", "blue")]
    prompts.append(PreviewPrompt("a dog"))
    task.set_trainable()
    preview = Preview(prompts=prompts, samples=2, steps=2, size=16)
    batch = prompt_batch(prompts, task.model.tokenizer, 224)
    images, again = (sample_images(task.model, task.frozen, task.scheduler, batch, preview) for _ in range(2))
    assert task.model.training, "the model is left as it was"
    assert images.shape == (3, 2, 3, 16, 16)
    assert torch.equal(images, again)
    assert not torch.equal(images[0], images[1])
    sheet = grid(batch, images, task.model)
    assert sheet.size == (3 * 192, 18 + 3 * 210)
    red, blue = sheet.getpixel((96, 132)), sheet.getpixel((96, 342))
    assert red[0] > 240
    assert max(red[1:]) < 10
    assert blue[2] > 240
    assert sheet.getpixel((96, 552)) == (255, 255, 255), "no picture, no cell"


def test_figures_of_a_preview_are_cosines_to_its_references_and_to_its_words(stages, tmp_path: Path):
    model = stages["instruct"].model
    Image.new("RGB", (224, 224), "red").save(tmp_path / "red.png")
    prompts = [PreviewPrompt("a dog"), PreviewPrompt("<i>", [str(tmp_path / "red.png")])]
    batch = prompt_batch(prompts, model.tokenizer, 224)
    dino, clip = save_dino(tmp_path / "dino"), save_clip(tmp_path / "clip")
    preview = Preview(dino=str(dino), clip=str(clip))
    red = torch.tensor([1.0, 0, 0]).view(3, 1, 1).expand(3, 224, 224)
    images = torch.stack([torch.stack([red, 1 - red]), torch.stack([red, red])])
    found = preview_figures(batch, images, model, preview)
    nets = FeatureNets(dino, clip, torch.device("cpu"))
    drawn = nets.of_images([Image.new("RGB", (224, 224), colour) for colour in ("red", "cyan")])
    words = nets.of_texts(["a dog", ""])
    told = ((drawn.clip @ words[0]).mean() + drawn.clip[0] @ words[1]) / 2
    assert found == pytest.approx({"preview/dino": 1, "preview/clip_i": 1, "preview/clip_t": float(told)}, abs=1e-4)
    images[1, 1] = 1 - red
    expected = float((1 + drawn.dino[0] @ drawn.dino[1]) / 2)
    assert preview_figures(batch, images, model, preview)["preview/dino"] == pytest.approx(expected, abs=1e-4)
    assert preview_figures(batch, images, model, Preview()) == {}


def test_networks_that_measure_a_preview_come_together_and_are_looked_for_at_the_start():
    with pytest.raises(ValueError, match=r"task\.preview\.dino: 'x' measures previews only .*task\.preview\.clip;"):
        Preview(dino="x")
    with pytest.raises(ConfigError, match=r"task\.preview\.dino: no ViTModel at nowhere"):
        networks("nowhere", "nowhere", torch.device("cpu"))


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (PreviewPrompt("a dog <i>"), "1 <i> marks and 0 pictures"),
        (PreviewPrompt("a dog <i>", ["absent.png"]), "absent.png cannot be read"),
    ],
)
def test_wrong_prompts_of_the_preview_get_a_sentence(tiny_tokenizer, prompt, said):
    with pytest.raises(ValueError, match=r"task\.preview\.prompts") as caught:
        prompt_batch([prompt], tiny_tokenizer, 224)
    assert said in str(caught.value)
