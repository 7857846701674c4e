"""Pictures scored per second on one core, beside the bare speed of the feature networks.

    python -m dev.benchmarks.evaluate [--pictures 32] [--rounds 3] [--dtype fp32|bf16]

Scores made-up 512 x 512 PNG files with DINO ViT-S/16 and CLIP ViT-B/32 of the true sizes (random weights): reading,
resizing, both networks, the foreground pass and the records on disk. `limit` is the networks alone on tensors in
memory: DINO twice (picture and foreground) and CLIP once, with torch's fastest attention, for the same pictures. Both
run pinned to one core and take turns, so that a machine whose speed drifts slows both; seconds are medians. Prints one
JSON object; `share` should be at least 0.8.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, ViTConfig, ViTModel

from tests.tiny import drawings as tiny
from tests.tiny.clip import VOCABULARY, letter_tokenizer
from training.base.precision import DTYPES
from training.base.processes import ProcessGroup
from training.evaluate.feature_networks import FeatureNets
from training.evaluate.jobs import dreambench_jobs
from training.evaluate.output_folder import OutputFolder
from training.evaluate.protocols import PROTOCOLS
from training.evaluate.score import References, score
from training.evaluate.subjects import DREAMBENCH

BATCH = 16


def save_true_sizes(folder: Path) -> tuple[Path, Path]:
    """DINO ViT-S/16 and CLIP ViT-B/32 with random weights, as folders; CLIP's text half is cut to one layer."""
    vit = ViTConfig(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536)
    ViTModel(vit, add_pooling_layer=False).save_pretrained(folder / "dino")
    text = CLIPTextConfig(**VOCABULARY, num_hidden_layers=1)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=CLIPVisionConfig(patch_size=32).to_dict())
    CLIPModel(config).save_pretrained(folder / "clip")
    letter_tokenizer(folder / "letters").save_pretrained(folder / "clip")
    return folder / "dino", folder / "clip"


@torch.inference_mode()
def bare_networks(dino: ViTModel, clip: CLIPModel, pixels: torch.Tensor) -> None:
    """What no scoring can do without."""
    for start in range(0, len(pixels), BATCH):
        batch = pixels[start : start + BATCH]
        dino(pixel_values=batch)
        dino(pixel_values=batch)
        clip.get_image_features(pixel_values=batch)


def measure(count: int, rounds: int, dtype: str) -> dict[str, object]:
    """Run both in turns and return the figures."""
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.manual_seed(0)
    cpu = torch.device("cpu")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        dino, clip = save_true_sizes(folder)
        nets = FeatureNets(dino, clip, cpu, DTYPES[dtype])
        fastest = ViTModel.from_pretrained(dino, add_pooling_layer=False).to(DTYPES[dtype]).eval()
        subject = DREAMBENCH.subjects[0]
        tiny.save_subjects(folder, {subject.name: 3})
        subjects = type(DREAMBENCH)("one", (subject,), DREAMBENCH.prompts)
        jobs = dreambench_jobs(subjects, folder, PROTOCOLS["kosmosg"])[:count]
        real = sorted((folder / "dataset" / subject.name).iterdir())
        references = References.read({subject.name: real}, {subject.name: subject.picked}, nets)
        generated = folder / "pictures"
        for number, job in enumerate(jobs):
            (generated / job.path).parent.mkdir(parents=True, exist_ok=True)
            noise = tiny.drawing(number, 512).effect_spread(3)
            noise.save(generated / job.path, compress_level=1)
        pixels = torch.randn(count, 3, 224, 224, dtype=DTYPES[dtype])
        process_group, scoring, bare = ProcessGroup(0, 1, cpu), [], []
        for turn in range(rounds + 1):  # the first one warms up
            for record in generated.glob("scores-*.jsonl"):
                record.unlink()
            start = time.perf_counter()
            score(
                jobs, references, nets, OutputFolder(generated), process_group, all_references=False, batch_size=BATCH
            )
            middle = time.perf_counter()
            bare_networks(fastest, nets.clip, pixels)
            if turn:
                scoring.append(middle - start)
                bare.append(time.perf_counter() - middle)
    seconds, limit = statistics.median(scoring), statistics.median(bare)
    return {
        "pictures": count,
        "dtype": dtype,
        "cores": 1,
        "seconds": round(seconds, 3),
        "limit": round(limit, 3),
        "pictures_per_second": round(count / seconds, 2),
        "limit_pictures_per_second": round(count / limit, 2),
        "share": round(statistics.median(b / s for b, s in zip(bare, scoring, strict=True)), 3),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", dest="images", metavar="N", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    options = parser.parse_args()
    print(json.dumps(measure(options.images, options.rounds, options.dtype)))


if __name__ == "__main__":
    main()
