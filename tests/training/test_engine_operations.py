"""The operations behind the utilisation figure, against counts by hand and against torch's own counter."""

import json

import pytest
import torch
from diffusers import AutoencoderTiny
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kosmos_core import KosmosG, KosmosGConfig
from tests.tiny.stable_diffusion import tiny_parts
from training import run
from training.base.precision import autocast
from training.base.rng import RowRng
from training.data.data_config import InstructData
from training.engine.operations import OperationCount, OperationCounter, batch_sizes
from training.engine.sharding.blocks import block_lists, recompute_activations
from training.plan.fake_floats import fake_floats
from training.plan.live_memory import LiveMemory
from training.plan.unread_stable_diffusion import UnreadStableDiffusion
from training.stages import align, instruct, lm

LATENTS = KosmosGConfig.tiny().resampler.latents
IDS = KosmosGConfig.tiny().ids
FROZEN, TRAINED = 1, 3  # forward passes that a step of a part costs


def stage(name, **task):
    """A stage of tiny models, which trains."""
    parts = tiny_parts()
    frozen = {"unet": parts["unet"], "vae": parts["vae"]} if name == "instruct" else {"clip": parts["text_encoder"]}
    if name == "instruct" and task.get("alignment"):
        frozen["clip"] = parts["text_encoder"]
    for module in frozen.values():
        module.requires_grad_(False).eval()
    model = KosmosG(KosmosGConfig.tiny(reconstruction=name == "align")).initialize(0)
    made = {
        "lm": lambda: lm.LmStage(model, lm.Config(**task), None, []),
        "align": lambda: align.AlignStage(model, align.Config(**task), None, None, [], frozen),
        "instruct": lambda: instruct.InstructStage(
            model, instruct.Config(**task), InstructData(), parts["scheduler"], [], frozen
        ),
    }[name]()
    made.set_trainable()
    return made


def batch(name, lengths, images=(), captions=False, side=16):
    """Rows of these lengths, padded; `images` are the rows that begin with a picture, one for each."""
    token_ids = torch.full((len(lengths), max(lengths)), IDS.pad)
    mask = torch.zeros_like(token_ids, dtype=torch.bool)
    for row, length in enumerate(lengths):
        token_ids[row, :length] = 7
    for row in images:
        mask[row, 1 : 1 + LATENTS] = True
    made = {"token_ids": token_ids, "keys": [""] * len(lengths), "sources": ["data"] * len(lengths)}
    if images or name != "align":
        made |= {"image_mask": mask, "pixels": torch.randn(len(images), 3, 224, 224) if images else None}
    if name == "lm":
        return made | {"loss_mask": (token_ids != IDS.pad) & ~mask}
    if name == "align" or captions:
        made["clip_ids"] = torch.full((len(lengths), 77), 5)
    if captions:
        made["captioned"] = torch.ones(len(lengths), dtype=torch.bool)
    return made if name == "align" else made | {"target": torch.zeros(len(lengths), 3, side, side)}


def step(made, rows, precision="fp32"):
    with autocast(precision, torch.device("cpu")):
        losses = made.training_step(made.model, rows, RowRng(0, 0))
    losses.total.backward()


def counted(made, rows, precision="fp32"):
    with OperationCounter() as counter:
        step(made, rows, precision)
    return counter.total


def linear(rows, inputs, outputs):
    return 2 * rows * inputs * outputs


def block(rows, length, width, ffn_width):
    """A transformer block: four projections, scores and sums over values, feed-forward."""
    attention = linear(rows * length, width, 4 * width) + 4 * rows * length**2 * width
    return attention + 2 * linear(rows * length, width, ffn_width)


def vision(config, images):
    """A picture's way through the tower's first blocks, its last, and the resampler."""
    sizes, width, latents = config.vision, config.decoder.width, config.resampler.latents
    one = block(images, sizes.tokens, sizes.width, sizes.ffn_width)
    first = linear(images * (sizes.tokens - 1), 3 * sizes.patch_size**2, sizes.width) + (sizes.layers - 1) * one
    keys = sizes.tokens + latents
    resampler = linear(images * sizes.tokens, sizes.width, width) + 4 * images * latents * keys * width
    resampler += linear(images * latents, width, 2 * width) + linear(images * keys, width, 2 * width)
    return first, one, resampler


@pytest.mark.parametrize("precision", ["fp32", "bf16"])  # on CPUs fused attention, and plain products
def test_count_of_a_training_step_is_the_count_by_hand(precision):
    made, rows = stage("lm"), batch("lm", (30, 30), images=(0, 1))
    config, targets = made.model.config, int(rows["loss_mask"][:, 1:].sum())
    sizes = config.decoder
    first, last, resampler = vision(config, 2)
    decoder = sizes.layers * block(2, 30, sizes.width, sizes.ffn_width)
    scores = linear(targets, sizes.width, sizes.vocabulary)
    expected = TRAINED * (decoder + scores + resampler + last) + FROZEN * first
    assert counted(made, rows, precision) == expected


@pytest.mark.parametrize("name", ["align", "instruct"])
def test_count_of_a_stage_is_that_of_torchs_counter_on_plain_products(name):
    made, rows = stage(name), batch(name, (30, 21, 9), images=(0, 1))
    with FlopCounterMode(display=False) as torchs, sdpa_kernel(SDPBackend.MATH):
        step(made, rows)
    assert counted(made, rows) == pytest.approx(torchs.get_total_flops(), rel=0.001)


@pytest.mark.parametrize("name", ["lm", "align", "instruct"])
def test_recomputed_activations_do_not_count(name):
    made, rows = stage(name), batch(name, (30, 21))
    before = counted(made, rows)
    recompute_activations(made)
    with FlopCounterMode(display=False) as torchs:
        step(made, rows)
    assert counted(made, rows) == before
    assert torchs.get_total_flops() > before, "nothing was recomputed"


def test_counting_keeps_no_activation_alive():
    peaks = []
    for counter in (False, True):
        made, rows = stage("lm"), batch("lm", (60, 60))
        recompute_activations(made)
        step(made, rows)
        with LiveMemory() as memory:
            counted(made, rows) if counter else step(made, rows)
        peaks.append(memory.peak)
    assert peaks[0] == peaks[1]


def test_counted_blocks_are_compiled_afterwards_and_count_as_they_are():
    made, rows, graphs = stage("lm"), batch("lm", (20, 20)), []

    def compiler(graph, _):
        graphs.append(graph)
        return graph.forward

    before = counted(made, rows)
    for block in [block for blocks in block_lists(made.model) for block in blocks]:
        block.compile(backend=compiler)
    assert counted(made, rows) == before
    assert not graphs
    step(made, rows)
    assert graphs
    assert counted(made, rows) == before


def test_what_processes_have_counted_they_tell_each_other():
    counts = [OperationCount([]) for _ in range(2)]
    for operations, sizes in zip(counts, ([1.0, 2.0], [1.0, 3.0]), strict=True):
        operations.learn(torch.tensor(sizes, dtype=torch.float64), 10 * sizes[0] + sizes[1])
    told = torch.tensor([2.0, 9.0], dtype=torch.float64)
    assert [operations.of(told) for operations in counts] == [None, None]
    gathered = [list(operations.counted) for operations in counts]
    for operations in counts:
        for counted_there in gathered:
            operations.merge(counted_there)
        assert len(operations.counted) == 2
        assert operations.of(told) == pytest.approx(29)


@pytest.mark.parametrize(
    ("name", "task"), [("lm", {}), ("align", {}), ("instruct", {}), ("instruct", {"alignment": 0.5})]
)
def test_few_counted_batches_tell_the_operations_of_all_others(name, task):
    made, random, operations = stage(name, **task), torch.Generator().manual_seed(0), OperationCount([])
    wrong = []
    for _ in range(16):
        lengths = torch.randint(6, 30, (3,), generator=random).tolist()
        images = [row for row in range(3) if torch.rand((), generator=random) < 0.4]
        rows = batch(name, lengths, images, captions=bool(task) and bool(torch.rand((), generator=random) < 0.7))
        sizes, found = batch_sizes(rows, IDS.pad), counted(made, rows)
        told = operations.of(sizes)
        if told is None:
            operations.learn(sizes, found)
        elif told != pytest.approx(found, rel=1e-9):
            wrong.append((lengths, images, told, found))
    assert not wrong
    assert len(operations.counted) <= 10


def test_packed_documents_tell_their_operations_too():
    made, random, operations = stage("lm"), torch.Generator().manual_seed(0), OperationCount([])
    for _ in range(15):
        rows = batch("lm", (24, 24))
        rows["document_ids"] = torch.randint(0, 2, (2, 24), generator=random).cumsum(1)
        sizes, found = batch_sizes(rows, IDS.pad), counted(made, rows)
        told = operations.of(sizes)
        if told is None:
            operations.learn(sizes, found)
        else:
            assert told == pytest.approx(found, rel=1e-9)
    assert len(operations.counted) <= 4


def test_what_a_batch_and_the_options_add_counts():
    made = stage("align")
    plain, pictured = (counted(made, batch("align", (30, 30), images)) for images in ((), (0, 1)))
    assert pictured - plain == FROZEN * sum(vision(made.model.config, 2))
    small, large = (counted(stage("instruct"), batch("instruct", (9, 9), side=side)) for side in (16, 32))
    smaller = counted(stage("instruct"), batch("instruct", (9, 9), side=8))
    # Convolutions grow with the area, attention with its square: at least fourfold steps.
    assert large - small > 4 * (small - smaller) > 0
    aligned = counted(stage("instruct", alignment=0.5), batch("instruct", (9, 9), captions=True))
    assert aligned > small
    frozen = stage("instruct", vision_last_block="frozen")
    pictured = batch("instruct", (9, 9), images=(0, 1))
    assert counted(frozen, pictured) < counted(stage("instruct"), pictured)


def test_the_operations_of_a_run_grow_with_its_resolution(smoke_stages, tmp_path):
    operations = []
    for resolution in (64, 256):
        folder = tmp_path / str(resolution)
        arguments = smoke_stages.arguments("instruct", folder, "--steps", "1", "--data.resolution", str(resolution))
        assert run.main(arguments) == 0
        records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        operations.append([record["flops_per_second"] * record["seconds_per_step"] for record in records])
    small, large = (sum(of_run) for of_run in operations)
    assert large > 1.15 * small


# -- Each part by itself


def counted_alone(function):
    with OperationCounter() as counter:
        function()
    return counter.total


def counted_by_torch(function):
    with FlopCounterMode(display=False) as torchs, sdpa_kernel(SDPBackend.MATH):
        function()
    return torchs.get_total_flops()


def decoder(config, rows, length):
    return config.decoder.layers * block(rows, length, config.decoder.width, config.decoder.ffn_width)


def positioned_encoder(config, rows, length):
    """An AlignerNet encoder with the linear map between the language model's width and its own."""
    sizes = config.aligner
    outer = linear(rows * length, config.decoder.width, sizes.width)
    return outer + sizes.encoder_layers * block(rows, length, sizes.width, sizes.ffn_width)


def query_decoder(config, rows, queries, memory):
    sizes = config.aligner
    cross = linear(rows * queries, sizes.width, 2 * sizes.width) + linear(rows * memory, sizes.width, 2 * sizes.width)
    cross += 4 * rows * queries * memory * sizes.width
    return sizes.decoder_layers * (block(rows, queries, sizes.width, sizes.ffn_width) + cross)


def half_m(config, rows, length):
    queries = config.aligner.queries
    return positioned_encoder(config, rows, length) + query_decoder(config, rows, queries, length)


def half_n(config, rows, length):
    return query_decoder(config, rows, length, config.aligner.queries) + positioned_encoder(config, rows, length)


@torch.no_grad()
def test_forward_of_every_part_equals_the_count_by_hand_and_torchs():
    config = KosmosGConfig.medium(reconstruction=True)
    model = KosmosG(config).eval()
    token_ids, pixels = torch.randint(4, 8000, (2, 30)), torch.randn(1, 3, 224, 224)
    hidden, condition = torch.randn(2, 30, 512), torch.randn(2, 77, 384)
    for function, by_hand in (
        (lambda: model.hidden_states(token_ids), decoder(config, 2, 30)),
        (lambda: model.logits(hidden), linear(60, 512, 8007)),
        (lambda: model.align(hidden), half_m(config, 2, 30)),
        (lambda: model.reconstruct(condition, 30), half_n(config, 2, 30)),
        (lambda: model.embed_images(pixels), sum(vision(config, 1))),
    ):
        assert counted_alone(function) == by_hand == counted_by_torch(function)


# Arithmetic by hand, layer by layer, for one row: by the side of the latents, and by that of the picture.
U_NET = {16: 45_846_958_080, 32: 180_106_444_800, 64: 803_273_441_280}
VAE_ENCODER = {128: 67_777_888_256, 256: 272_722_165_760, 512: 1_116_658_466_816}
CLIP_TEXT = 13_298_503_680


@torch.no_grad()
def test_stable_diffusion_1_5_counts_as_by_hand():
    diffusion = UnreadStableDiffusion("", torch.float32, text_encoder_only=False)
    with fake_floats():
        unet, vae, clip = diffusion.unet(768), diffusion.vae(), diffusion.text_encoder(768)
        for side, by_hand in U_NET.items():
            inputs = torch.zeros(1, 4, side, side), torch.zeros(1, dtype=torch.long), torch.zeros(1, 77, 768)
            assert counted_alone(lambda inputs=inputs: unet(*inputs)) == by_hand
        for side, by_hand in VAE_ENCODER.items():
            assert counted_alone(lambda side=side: vae.encode(torch.zeros(1, 3, side, side))) == by_hand
        assert counted_alone(lambda: clip(torch.zeros(1, 77, dtype=torch.long))) == CLIP_TEXT


@torch.no_grad()
def test_the_tiny_autoencoder_counts_as_torch_counts_it():
    images, tiny = torch.randn(2, 3, 64, 64), AutoencoderTiny()
    assert counted_alone(lambda: tiny.encode(images)) == counted_by_torch(lambda: tiny.encode(images)) > 0


def test_alignment_without_half_n_costs_so_much_less():
    both, rows = stage("align"), batch("align", (30, 30))
    config = both.model.config
    alone = stage("align")
    alone.model = KosmosG(KosmosGConfig.tiny()).initialize(0)
    alone.set_trainable()
    assert counted(both, rows) - counted(alone, rows) == TRAINED * half_n(config, 2, 30) > 0


@pytest.mark.parametrize("name", ["lm", "instruct"])
def test_a_frozen_last_block_costs_no_backward_pass(name):
    trained, frozen = stage(name), stage(name, vision_last_block="frozen")
    rows = batch(name, (9, 9), images=(0, 1))
    last = vision(trained.model.config, 2)[1]
    assert counted(trained, rows) - counted(frozen, rows) == (TRAINED - FROZEN) * last > 0
