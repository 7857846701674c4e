"""Latents and CLIP states beside the shards: what they give, when they are used, and when they are refused."""

import io
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from training import run
from training.base.rng import RowRng
from training.data import cache
from training.data.batch_stream import Stream
from training.data.cache import Cache
from training.data.cached_rows import CachedRows, Maker, content_key, made_by
from training.data.index import index_dataset
from training.data.shard_writer import write_shard
from training.engine.operations import batch_sizes
from training.engine.run_config import parse
from training.stages import stage_module
from training.stages.diffusion_loss import batch_latents, encode_images

CPU = torch.device("cpu")
SOURCES = {"constructed": "compositional", "edits": "edit", "captions": "pairs"}


@pytest.fixture
def copied(smoke_stages, tmp_path):
    """Words of a run on copies of the data that may have files beside them, and of the command that makes these."""
    for name in SOURCES.values():
        shutil.copytree(smoke_stages.folder / "data" / name, tmp_path / name)

    def made(stage, run_folder="run", *more):
        sources = {"captions": "pairs"} if stage == "align" else SOURCES
        options = [word for key, name in sources.items() for word in (f"--data.sources.{key}.path", tmp_path / name)]
        return smoke_stages.arguments(stage, tmp_path / run_folder, *map(str, options), *more)

    def command(what, *names, precision="fp32", resolution="64"):
        paths = [str(tmp_path / name) for name in names]
        options = ["--stable_diffusion", str(smoke_stages.folder / "stable-diffusion"), "--what", what]
        options += ["--workers", "0"]
        return cache.main([*paths, *options, "--precision", precision, "--resolution", resolution, "--device", "cpu"])

    return made, command


def built(arguments):
    config = parse(arguments)
    stage = stage_module(config.stage).build(config, CPU, CPU)
    stage.set_trainable()
    return stage


def rows(stage, count=10):
    return next(stage.stream(Stream(0, 0, 1, count, 1)))


def test_cached_latents_are_those_that_the_run_would_compute_and_every_source_may_lack_them(copied, capsys):
    arguments, command = copied
    stage = built(arguments("instruct"))
    plain = rows(stage)
    assert command("latents", "compositional", "edit") == 0
    assert "rows of latents made" in capsys.readouterr().out
    mixed = rows(stage)
    assert mixed["keys"] == plain["keys"]
    for name in ("token_ids", "image_mask", "pixels"):
        assert torch.equal(mixed[name], plain[name]), name
    assert mixed["cached"].tolist() == [source != "captions" for source in mixed["sources"]]
    assert len(mixed["target"]) == mixed["sources"].count("captions") > 0
    vae, rng = stage.frozen["vae"], RowRng(0, 3)
    expected = encode_images(vae, plain["target"], rng)
    torch.testing.assert_close(batch_latents(vae, mixed, rng), expected, rtol=1e-4, atol=1e-5)
    assert float(expected.std()) > 0.01
    assert batch_sizes(plain, 1)[-1] - batch_sizes(mixed, 1)[-1] == int(mixed["cached"].sum())
    assert command("latents", "pairs") == 0
    assert "target" not in rows(stage)
    torch.testing.assert_close(batch_latents(vae, rows(stage), rng), expected, rtol=1e-4, atol=1e-5)
    unused = built(arguments("instruct", "run", "--data.use_cache", "false"))
    assert torch.equal(rows(unused)["target"], plain["target"])
    capsys.readouterr()
    assert command("latents", "compositional", "edit", "pairs") == 0
    assert capsys.readouterr().out.count("0 rows of latents made, 0B, all there already.") == 3


def test_a_run_with_cached_states_trains_as_one_without(copied, tmp_path):
    arguments, command = copied
    assert command("states", "pairs") == 0
    options = "--steps", "2", "--data.workers", "1", "--data.empty_captions", "0.3"
    stage = built(arguments("align", "run", *options))
    batch = rows(stage)
    assert batch["stated"].all()
    empty = stage.clip_tokenizer("").input_ids
    assert any(row[: len(empty)].tolist() == empty for row in batch["clip_ids"])  # the null caption has states too
    expected = stage.frozen["clip"](batch["clip_ids"]).last_hidden_state
    torch.testing.assert_close(batch["states"], expected, rtol=1e-5, atol=1e-5)
    for folder, used in (("with", "true"), ("without", "false")):
        assert run.main(arguments("align", folder, *options, "--data.use_cache", used)) == 0
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / folder / "log.jsonl").read_text().splitlines()]
        for folder in ("with", "without")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_what_was_made_otherwise_is_refused_in_one_sentence(copied, smoke_stages, tmp_path, capsys):
    arguments, command = copied
    assert command("latents", "pairs") == 0
    (path,) = tmp_path.glob("pairs/*.latents")
    whole, shard = path.read_bytes(), path.with_suffix("")

    def refusal(*more):
        capsys.readouterr()
        assert run.main(arguments("instruct", "run", "--steps", "1", *more)) in (1, 2)
        told = capsys.readouterr().err
        told = told[told.index("error: ") :]
        assert told.count("\n") == 1
        assert "run `python -m training.data.cache` again, or train with --data.use_cache false." in told
        return told

    assert "was made at 64 pixels, and this run has data.resolution 128;" in refusal("--data.resolution", "128")
    assert "was made in fp32, and this run computes in bf16;" in refusal("--precision", "bf16")
    path.write_bytes(whole[: len(whole) // 2])
    assert made_by(path) == {}
    assert "it cannot be read" in refusal()
    made = {"made": json.dumps({"what": "latents"})}
    save_file({"keys": torch.zeros(2, 16, dtype=torch.uint8), "rows": torch.zeros(3, 4)}, path, made)
    assert made_by(path) == {}
    path.write_bytes(whole.replace(b'\\"version\\": 1', b'\\"version\\": 0'))
    assert "by an earlier or later release" in refusal()
    path.write_bytes(whole)
    with safe_open(path, "pt") as file:
        kept, rows, made = file.get_tensor("keys"), file.get_tensor("rows"), file.metadata()
    for others, told in ((rows[:, :, :, :4], "F32 of 2 x 4 x 4 x 8"), (rows.half(), "F16 of 2 x 4 x 8 x 8")):
        save_file({"keys": kept, "rows": others.contiguous()}, path, made)
        assert f"was made wrongly: its rows are {told}, and not F32 of 2 x 4 x 8 x 8;" in refusal()
    other = tmp_path / "stable-diffusion"
    shutil.copytree(smoke_stages.folder / "stable-diffusion", other)
    path.write_bytes(whole)
    weights = bytearray((other / "vae/diffusion_pytorch_model.safetensors").read_bytes())
    weights[-3] ^= 1
    (other / "vae/diffusion_pytorch_model.safetensors").write_bytes(weights)
    assert "by other weights than those of task.stable_diffusion" in refusal("--task.stable_diffusion", str(other))
    with shard.open("ab") as file:
        file.write(bytes(512))
    assert "from another file than lies beside it now" in refusal()
    assert made_by(path)["shard_size"] < shard.stat().st_size
    assert command("latents", "pairs") == 0
    assert made_by(path)["shard_size"] == shard.stat().st_size
    write_shard(shard.with_name("other.tar"), [("0", {"jpg": b"no image", "txt": b"a red circle"})])
    assert "1 of 2 shards have latents beside them, and other.tar has none" in refusal()
    assert not list((tmp_path / "run").glob("log.jsonl"))


def test_a_sample_that_the_rows_do_not_know_is_refused_where_it_is_read(copied, tmp_path, capsys):
    arguments, command = copied
    assert command("states", "pairs") == 0
    (path,) = tmp_path.glob("pairs/*.states")
    shard = path.with_suffix("")
    content = shard.read_bytes()
    shard.write_bytes(content.replace(b"a red ", b"a big "))
    assert run.main(arguments("align", "run", "--steps", "20")) == 1
    told = capsys.readouterr().err
    assert "has no states beside its shard, so those were made from other data; run `python -m" in told


class EveryEighthPixel:
    """An autoencoder whose latents are pixels of the image."""

    device, dtype = CPU, torch.float32

    def encode(self, images):
        return SimpleNamespace(latents=images[:, :, ::8, ::8])


def test_each_sample_finds_its_own_row_in_its_shard_whichever_shards_were_made_before(tmp_path):
    images = []
    for number in range(5):
        Image.new("RGB", (16, 16), (50 * number, 0, 255)).save(file := io.BytesIO(), "PNG")
        images.append(file.getvalue())
    for shard in range(3):
        numbers = range(2 * shard, min(2 * shard + 2, 5))
        write_shard(tmp_path / f"{shard}.tar", [(f"{n}", {"png": images[n], "txt": b"a dog"}) for n in numbers])
    dataset = index_dataset(tmp_path)
    maker = Maker("latents", "0" * 32, "fp32", (2, 3, 2, 2), 16)
    options = SimpleNamespace(resolution=16, batch=2, workers=0)
    made = Cache(dataset, "captions", maker, options)
    assert made.write(EveryEighthPixel(), None)[0] == 5
    (tmp_path / "1.tar.latents").unlink()
    assert made.write(EveryEighthPixel(), None)[0] == 2
    rows = CachedRows.of("web", dataset, maker)
    for number, content in enumerate(images):
        found = rows.row(number, content_key(content))
        assert found[0, 0].unique().tolist() == pytest.approx([50 * number / 127.5 - 1])
        assert rows.row(number, content_key(images[number - 2])) is None  # which is in another shard


def test_captions_are_told_apart_by_their_ids_and_not_by_the_digits_of_these():
    captions = ([1, 23], [12, 3], [123], [1, 2, 3], [])
    assert len({content_key(ids) for ids in captions}) == len(captions)


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--batch", "0", "--batch: 0 must be at least 1."),
        ("--resolution", "60", "--resolution: 60 must be a multiple of 8"),
        ("--stable_diffusion", "nowhere", "--stable_diffusion: "),
        ("--workers", "-1", "--workers: -1 must be at least 0."),
    ],
)
def test_options_that_cannot_be_are_named(tmp_path, capsys, option, value, sentence):
    given = {"--stable_diffusion": "nowhere", option: value}
    assert cache.main([str(tmp_path), *(word for pair in given.items() for word in pair)]) == 2
    assert f"error: {sentence}" in capsys.readouterr().err
