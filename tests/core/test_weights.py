"""One file holds a whole model; anything else is refused with a sentence that says what it is."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from kosmos_core import KosmosG, KosmosGConfig, Tokenizer, WeightsError, load_model, save_model
from kosmos_core.safetensors_file import read_header, write
from kosmos_core.weights import _describe, identify, read_config


@pytest.fixture(scope="module")
def model(tiny_tokenizer_files):
    tokenizer = Tokenizer.from_files(*tiny_tokenizer_files, latents=4)
    config = KosmosGConfig.tiny(vocabulary=tokenizer.vocabulary, reconstruction=True)
    return KosmosG(config, tokenizer=tokenizer).initialize(1).eval()


@pytest.fixture
def path(model, tmp_path):
    save_model(model, tmp_path / "any name.safetensors", stage="align", provenance={"steps": 3})
    return tmp_path / "any name.safetensors"


def rewrite(path, *, drop=(), add=None, changed=None, metadata=None):
    tensors = {k: v for k, v in safetensors.torch.load_file(path).items() if k not in drop}
    tensors |= (add or {}) | (changed or {})
    safetensors.torch.save_file(tensors, path, metadata=read_header(path).metadata | (metadata or {}))


def test_a_saved_model_comes_back_bit_for_bit_with_tokenizer_config_and_provenance(model, path):
    loaded = load_model(path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert loaded.config == model.config
    assert torch.equal(loaded.encode("a dog"), model.encode("a dog"))
    _, description = read_config(path)
    assert description == {"stage": "align", "dtype": "float32", "provenance": {"steps": 3}}
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_the_type_on_disk_and_in_memory_can_be_chosen(model, tmp_path):
    save_model(model, tmp_path / "half.safetensors", dtype=torch.float16)
    assert read_config(tmp_path / "half.safetensors")[1]["dtype"] == "float16"
    assert load_model(tmp_path / "half.safetensors", dtype=None).decoder.norm.weight.dtype == torch.float16
    assert load_model(tmp_path / "half.safetensors").decoder.norm.weight.dtype == torch.float32
    assert load_model(tmp_path / "half.safetensors", dtype=torch.bfloat16).device == torch.device("cpu")


def test_loading_maps_the_file_instead_of_reading_it(tmp_path):
    big = KosmosG(KosmosGConfig.tiny(vocabulary=1_000_000)).initialize(0)
    save_model(big, tmp_path / "big.safetensors")
    script = (
        "import sys, torch, kosmos_core\n"
        "resident = lambda: int(open('/proc/self/statm').read().split()[1]) * 4096\n"
        "kosmos_core.load_model(sys.argv[2])\n"  # what torch imports at its first use is not the file's share
        "before = resident()\n"
        "model = kosmos_core.load_model(sys.argv[1])\n"
        "print(resident() - before)\n"
        "assert 'torch._dynamo' not in sys.modules\n"  # torch's compiler takes a second to be imported
    )
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("resident memory is read from /proc")
    save_model(KosmosG(KosmosGConfig.tiny()).initialize(0), tmp_path / "small.safetensors")
    command = [sys.executable, "-c", script, tmp_path / "big.safetensors", tmp_path / "small.safetensors"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(result.stdout) < (tmp_path / "big.safetensors").stat().st_size / 10


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="peaks are read from /proc")
def test_conversion_lets_go_of_the_pages_that_it_has_read(tmp_path):
    sizes = KosmosGConfig.tiny()
    deep = KosmosG(replace(sizes, decoder=replace(sizes.decoder, width=256, layers=30, ffn_width=1024))).initialize(0)
    save_model(deep, tmp_path / "deep.safetensors", dtype=torch.float16)
    script = (
        "import sys, kosmos_core.weights\n"
        "status = lambda key: int(open('/proc/self/status').read().split(key)[1].split()[0]) * 1024\n"
        "kosmos_core.weights.READ_TOGETHER = 1 << 18\n"  # as small beside this model as it is beside the official one
        "kosmos_core.load_model(sys.argv[2])\n"
        "before = status('VmRSS:')\n"
        "open('/proc/self/clear_refs', 'w').write('5')\n"  # the peak begins anew
        "model = kosmos_core.load_model(sys.argv[1])\n"
        "print((status('VmHWM:') - before) / sum(p.nbytes for p in model.parameters()))\n"
    )
    save_model(KosmosG(KosmosGConfig.tiny()).initialize(0), tmp_path / "small.safetensors", dtype=torch.float16)
    command = [sys.executable, "-c", script, tmp_path / "deep.safetensors", tmp_path / "small.safetensors"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(result.stdout) < 1.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_weights_are_rounded_as_torch_rounds_them(tmp_path, dtype):
    model = KosmosG(KosmosGConfig.tiny()).initialize(0)
    save_model(model, tmp_path / "half.safetensors", dtype=torch.float16)
    loaded = load_model(tmp_path / "half.safetensors", dtype=dtype).state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded[name], tensor.half().to(dtype)), name


def test_missing_and_extra_tensors_are_listed(path):
    rewrite(path, drop=["decoder.norm.weight", "vision.norm_post.bias"], add={"surprise": torch.zeros(1)})
    with pytest.raises(WeightsError) as error:
        load_model(path)
    assert "2 missing tensor(s): decoder.norm.weight, vision.norm_post.bias" in str(error.value)
    assert "1 extra tensor(s): surprise" in str(error.value)


def test_at_most_ten_names_are_listed(path):
    rewrite(path, add={f"surprise.{n:02}": torch.zeros(1) for n in range(30)})
    with pytest.raises(WeightsError, match=r"30 extra tensor\(s\).*surprise\.09, \.\.\.") as error:
        load_model(path)
    assert "surprise.10" not in str(error.value)


def test_wrong_shapes_are_shown_as_a_table(path):
    rewrite(path, changed={"decoder.norm.weight": torch.zeros(5)})
    with pytest.raises(WeightsError) as error:
        load_model(path)
    head, row = str(error.value).splitlines()[-2:]
    assert head.split() == ["name", "expected", "found"]
    assert row.split() == ["decoder.norm.weight", "(32,)", "(5,)"]


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (
            "Kosmos-2",
            [
                "text_model.model.embed_tokens.weight",
                "image_to_text_projection.latent_query",
                "vision_model.model.encoder.layers.0.mlp.fc1.weight",
            ],
        ),
        ("CLIP model", ["text_model.encoder.layers.0.mlp.fc1.weight", "text_model.embeddings.token_embedding.weight"]),
        ("CLIP model", ["visual.transformer.resblocks.0.ln_1.weight", "token_embedding.weight"]),
        ("CLIP vision", ["vision_model.encoder.layers.0.mlp.fc1.weight"]),
        (
            "Stable Diffusion checkpoint",
            [
                "model.diffusion_model.input_blocks.0.0.weight",
                "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight",
            ],
        ),
        ("U-Net", ["down_blocks.0.resnets.0.conv1.weight", "mid_block.resnets.0.conv1.weight"]),
        ("LoRA", ["lora_unet_down_blocks_0.lora_up.weight", "lora_te_text_model_encoder_layers_0.lora_down.weight"]),
        ("LoRA", ["unet.down_blocks.0.lora_A.weight", "unet.mid_block.lora_A.weight"]),
        ("ControlNet", ["control_model.input_blocks.0.0.weight"]),
        ("original Kosmos-G", ["gpt_model.decoder.embed_tokens.weight"]),
        ("something unknown", ["weight"]),
    ],
)
def test_other_files_are_called_by_their_kind(kind, names, tmp_path):
    safetensors.torch.save_file({name: torch.zeros(2) for name in names}, tmp_path / "kosmos-g.safetensors")
    assert kind in identify(tmp_path / "kosmos-g.safetensors")
    with pytest.raises(WeightsError, match=kind):
        load_model(tmp_path / "kosmos-g.safetensors")


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_called_so(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(WeightsError, match=r"cut short|not a safetensors file"):
        load_model(path)


def test_another_format_version_is_refused_with_the_way_out(path):
    rewrite(path, metadata={"format_version": "2"})
    with pytest.raises(WeightsError, match=r"format version '2', this release reads version 1; update"):
        load_model(path)


@pytest.mark.parametrize("config", ["{", "[]", '{"vision": {"size": 1}}', '{"brain": {}}', "null"])
def test_unreadable_metadata_is_named(path, config):
    rewrite(path, metadata={"config": config})
    with pytest.raises(WeightsError, match="unreadable metadata"):
        load_model(path)


def test_a_pickle_a_folder_and_nothing_are_refused(tmp_path):
    torch.save({"model": {}}, tmp_path / "c.safetensors")
    with pytest.raises(WeightsError, match=r"PyTorch checkpoint.*kosmos_core\.convert"):
        load_model(tmp_path / "c.safetensors")
    with pytest.raises(WeightsError, match="is a folder"):
        load_model(tmp_path)
    with pytest.raises(WeightsError, match="is missing"):
        load_model(tmp_path / "nothing.safetensors")


def test_a_failed_save_keeps_the_old_file_and_leaves_nothing_behind(model, path, tmp_path):
    before = path.read_bytes()
    script = (
        "import resource, signal, sys, kosmos_core\n"
        "model = kosmos_core.load_model(sys.argv[1])\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "kosmos_core.save_model(model, sys.argv[1])\n"
    )
    assert len(before) > 200_000
    result = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=False)
    assert "OSError" in result.stderr
    assert f"{path} cannot be written (File too large); make room, or give a folder on another disk" in result.stderr
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_without_tokenizer_loads_and_says_what_is_missing(model, tmp_path):
    bare = KosmosG(model.config).initialize(1)
    save_model(bare, tmp_path / "k.safetensors")
    loaded = load_model(tmp_path / "k.safetensors")
    loaded.encode_tokens(torch.tensor([[0, 5, 6]]))
    with pytest.raises(ValueError, match=r"hold no tokenizer.*--spm"):
        loaded.encode("a dog")


def test_every_tensor_lies_where_a_map_of_the_file_can_hold_its_numbers(tmp_path):
    """Whatever their order and however odd their sizes: a map's address and a tensor's begin have to fit."""
    path = tmp_path / "a.safetensors"
    tensors = {"a": torch.ones(3, dtype=torch.uint8), "b": torch.ones(5), "c": torch.ones(7, dtype=torch.bfloat16)}
    write(path, [(name, tensor, tensor.dtype) for name, tensor in tensors.items()], {"odd": "x" * 13})
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert (8 + length) % 64 == 0
    for name, tensor in tensors.items():
        assert header[name]["data_offsets"][0] % tensor.itemsize == 0, name


def test_the_safetensors_library_reads_what_we_write(path):
    metadata = read_header(path).metadata
    assert metadata["format"] == "kosmos-g"
    assert json.loads(metadata["config"])["decoder"]["width"] == 32
    assert safetensors.torch.load_file(path)["decoder.norm.weight"].shape == (32,)


def test_a_file_with_damaged_entries_is_called_so(path):
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(WeightsError, match="is damaged"):
        load_model(path)
    for header in (b'{"__metadata__": null}', b"[" * 50_000):
        path.write_bytes(len(header).to_bytes(8, "little") + header)
        with pytest.raises(WeightsError, match="header is unreadable"):
            load_model(path)


def test_half_a_tokenizer_or_a_broken_one_is_refused(path):
    whole = path.read_bytes()
    rewrite(path, drop=["tokenizer.dictionary"])
    with pytest.raises(WeightsError, match="holds only one of"):
        load_model(path)
    path.write_bytes(whole)
    for dtype in (torch.uint8, torch.float8_e4m3fn):
        rewrite(path, changed={"tokenizer.sentencepiece": torch.zeros(9, dtype=dtype)})
        with pytest.raises(WeightsError, match="broken tokenizer"):
            load_model(path)


@pytest.mark.parametrize("dtype", ["fp16", torch.int8])
def test_a_type_that_is_no_float_is_refused(model, path, dtype):
    with pytest.raises(ValueError, match=r"dtype is .*, expected torch\.float32"):
        load_model(path, dtype=dtype)
    with pytest.raises(ValueError, match=r"dtype is .*, expected torch\.float32"):
        save_model(model, path, dtype=dtype)


def test_a_place_that_cannot_be_written_is_named_as_it_was_given(model, tmp_path):
    with pytest.raises(OSError, match=r"no folder .*missing; make it first"):
        save_model(model, tmp_path / "missing" / "k.safetensors")
    with pytest.raises(OSError, match="is a folder; give the name of the file"):
        save_model(model, tmp_path)
    assert list(tmp_path.iterdir()) == []
    tmp_path.chmod(0o555)
    folder = "/sys" if os.access(tmp_path, os.W_OK) else tmp_path  # root may write anywhere but there
    try:
        with pytest.raises(
            OSError, match=r"k\.safetensors cannot be written \(.*\); give a folder in which you may write"
        ):
            save_model(model, f"{folder}/k.safetensors")
    finally:
        tmp_path.chmod(0o755)
    assert list(tmp_path.iterdir()) == []


def test_a_config_larger_than_the_tensors_beside_it_is_refused_before_a_model_is_made(path):
    header = read_header(path)
    sizes = [(part, name) for part, sizes in KosmosGConfig.tiny().to_dict().items() for name in sizes]
    assert len(sizes) > 20
    for part, name in sizes:
        for size in (10**6, 10**18, 10**400):
            config = KosmosGConfig.tiny().to_dict()
            config[part][name] = size
            metadata = header.metadata | {"config": json.dumps(config)}
            took = []
            for _ in range(2):  # once, all that other tests have left behind may be collected meanwhile
                started = time.process_time()
                with pytest.raises(WeightsError, match=f"{part}.{name}|{part}.heads") as caught:
                    _describe(path, replace(header, metadata=metadata))
                took.append(time.process_time() - started)
            assert min(took) < 0.5
            assert len(str(caught.value)) < 500
    config = KosmosGConfig.tiny().to_dict()
    config["decoder"]["layers"] = 10**6
    rewrite(path, metadata={"config": json.dumps(config)})
    with pytest.raises(WeightsError, match=r"its decoder\.layers is 1000000, but holds \d+ tensors"):
        load_model(path)


def test_a_header_whose_length_begins_like_a_pickle_is_read(path):
    """0x80 is a pickle's first byte, and one in 32 of the lengths that other programs write."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    padded = length + (0x80 - length) % 0x100
    path.write_bytes(padded.to_bytes(8, "little") + content[8 : 8 + length].ljust(padded) + content[8 + length :])
    assert identify(path) is None
    load_model(path)


@pytest.mark.parametrize(
    "header",
    [
        b'{"x": {"dtype": "F32", "shape": ["1"], "data_offsets": [0, 4]}}',
        b'{"x": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 4]}}',
        b'{"x": {"dtype": "F32", "shape": "11", "data_offsets": [0, 4]}}',
        b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": {}}}',
        b'{"x\\u001b[2J": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"__metadata__": []}',
        b"[" * 200_000,
        b"[]",
    ],
)
def test_a_header_of_another_make_is_one_sentence(tmp_path, header):
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    with pytest.raises(WeightsError, match="its header is unreadable"):
        identify(tmp_path / "x.safetensors")


def test_a_header_too_large_for_any_model_is_not_read(tmp_path):
    with (tmp_path / "x.safetensors").open("wb") as file:
        file.write((90_000_001).to_bytes(8, "little") + b"{")
        file.truncate(90_000_100)
    with pytest.raises(WeightsError, match="header of 90,000,001 bytes"):
        identify(tmp_path / "x.safetensors")
