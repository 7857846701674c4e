"""What the pack says to whoever types comes in ComfyUI's language: web/sentences.js with the words of locales/."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dev.install import ROOT
from kosmos_core import Prompt, PromptError
from kosmos_core.prompt_remarks import _HABITS, remarks

WORDS = json.loads((ROOT / "locales/zh/main.json").read_text(encoding="utf-8"))["kosmosG"]
NEAR = ("<1>", "<i and", "i>", "<i1,i2>", "<<i>>", "<i:1.3>", "＜i＞", "&lt;i2&gt;", "<\u200bi>", "〈i〉", "[i]")
WRONG = (
    ("a (dog", 0), ("a dog)", 0), ("a <i3>", 1), ("a <i3>", 2), ("a <i>", 0), ("<i> <i>", 1), ("<i> <i> <i>", 2),
    ("<i0>", 1), ("(dog:x)", 0), ("(dog:900)", 0), ("((dog:90):90)", 0), ("a", 1), ("a <1>", 1), ("a", 2),
    ("<1>", 3), (r"\<i>", 1),
)  # fmt: skip
SCRIPT = """
import fs from "node:fs";
import { said, speak } from "./sentences.mjs";
const { words, sentences } = JSON.parse(fs.readFileSync("job.json", "utf8"));
speak(null);
const before = sentences.map(said);
speak(words);
console.log(JSON.stringify({ before, after: sentences.map(said) }));
"""


def in_chinese(sentences: list[str], folder: Path) -> list[str]:
    """What web/sentences.js makes of them, which without words gives them back as they are."""
    (folder / "sentences.mjs").write_bytes((ROOT / "web/sentences.js").read_bytes())
    (folder / "job.json").write_text(json.dumps({"words": WORDS, "sentences": sentences}))
    (folder / "run.mjs").write_text(SCRIPT)
    ran = subprocess.run(["node", "run.mjs"], cwd=folder, capture_output=True, text=True, check=True)
    told = json.loads(ran.stdout)
    assert told["before"] == sentences
    return told["after"]


# What somebody has written, and names that are the same in both languages.
OWN = re.compile(
    r"“[^”]*”|\([^()]*\)|（[^（）]*）|\\\S+|<[^<>]*>|[\w.*/ -]+\.\w+"
    r"|Kosmos-G|Load\w+|Stable Diffusion|Conditioning\w+|CLIP"
)


def untranslated(sentences: list[str], folder: Path) -> list[str]:
    """Those in which English is left."""
    told = zip(sentences, in_chinese(sentences, folder), strict=True)
    return [f"{one} -> {other}" for one, other in told if re.search("[a-z]{4}", OWN.sub("", other)) or one == other]


def of_the_server() -> Iterator[str]:
    """Every remark, and every error that a prompt can have."""
    for _, advice in _HABITS:
        yield advice.format("“[a cat and a dog]”", inner="a cat and a dog", name="cat")
    for spelled in NEAR:
        yield from remarks(f"a dog {spelled} here")
    yield from remarks("(dog:4) (<i>:5)", Prompt.parse("(dog:4) (<i>:5)"))
    yield f"In the negative prompt: {remarks('BREAK')[0]}"
    for text, images in WRONG:
        with pytest.raises(PromptError) as refused:
            Prompt.parse(text, images=images)
        yield refused.value.reason
    yield str(refused.value)  # with the place, as a run says it


@pytest.mark.skipif(shutil.which("node") is None, reason="no node")
def test_every_remark_and_error_of_a_prompt_has_its_chinese_words(tmp_path: Path) -> None:
    sentences = list(of_the_server())
    assert len(sentences) == len(set(sentences)) > 40
    assert untranslated(sentences, tmp_path) == []


@pytest.mark.skipif(shutil.which("node") is None, reason="no node")
def test_a_persons_own_words_stay_as_they_are(tmp_path: Path) -> None:
    written = [
        "“no mark and OK” weighs nothing here: a weight stands inside parentheses, as in (dog:1.3).",
        "image_1: Draw.png, weight 1.3",
        "none is of ours",
    ]
    told = in_chinese(written, tmp_path)
    assert told[0].startswith("“no mark and OK” 在这里")
    assert told[1:] == ["图片 1：Draw.png，权重 1.3", written[2]]
