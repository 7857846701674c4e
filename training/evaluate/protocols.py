"""The two ways in which papers measure DreamBench, by name; figures of one must never stand beside the other's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..base.errors import ConfigError


@dataclass(frozen=True)
class Protocol:
    """How prompts are worded, how pictures are sampled, and what they are compared with."""

    name: str
    all_references: bool
    """Compare with every real picture of the subject (mean), not with the picked one alone."""
    noun_and_image: bool
    """Word the subject as "a noun <i>"; otherwise `<i>` alone stands for it and articles go."""
    shared_noise: int
    """This many prompts draw their noise together from one seed that starts anew; 1: a seed for each picture."""
    scheduler: str = "dpmsolver++"
    steps: int = 100
    guidance: float = 7.5
    samples: int = 4
    """Pictures for each prompt."""


PROTOCOLS = {
    # arXiv 2310.02992, section 4.2 and appendix A; UNO and OmniGen compare with the picked picture as well. The
    # original samples five prompts together and seeds every batch with 0.
    "kosmosg": Protocol("kosmosg", all_references=False, noun_and_image=False, shared_noise=5),
    # arXiv 2208.12242, section 5.2, and most papers on diffusion models since.
    "dreambooth": Protocol("dreambooth", all_references=True, noun_and_image=True, shared_noise=1),
}

# Figures that were published under each protocol on all 30 subjects: DINO, CLIP-I, CLIP-T.
PUBLISHED = {
    "kosmosg": {"Kosmos-G (its paper)": (0.694, 0.847, 0.287)},
    "dreambooth": {
        "Real pictures (DreamBooth paper)": (0.774, 0.885, None),
        "Kosmos-G (re-run by the lambda-ECLIPSE authors)": (0.618, 0.822, 0.250),
    },
}


def words_of(template: str, nouns: Sequence[str]) -> str:
    """The prompt in plain words, which CLIP-T compares with: `{}` becomes "dog", or "dog and a cat" for two."""
    return template.replace("{}", " and a ".join(nouns))


def prompt_of(template: str, nouns: Sequence[str], protocol: Protocol) -> str:
    """The prompt as Kosmos-G reads it, with one `<i>` per noun.

    `kosmosg`: "a {} in the snow" becomes "<i> in the snow" and "a red {}" becomes "<i>, red" (paper, table 3).
    `dreambooth`: "a dog <i> in the snow".
    """
    if protocol.noun_and_image:
        return template.replace("{}", " and a ".join(f"{noun} <i>" for noun in nouns))
    before, _, after = template.partition("{}")
    marks = " and ".join("<i>" for _ in nouns)
    property_ = before.removeprefix("a ").strip()
    return f"{marks}{after}" if not property_ else f"{marks}, {property_}{after}"


def mark_nouns(text: str, nouns: Sequence[str], protocol: Protocol) -> str:
    """A prompt in words with its nouns replaced by pictures, each noun at its first place after the one before.

    ConfigError where a noun does not occur.
    """
    done, rest = "", text
    for noun in nouns:
        found = rest.find(noun)
        if found < 0:
            raise ConfigError(
                f"the prompt {text!r} lacks the noun {noun!r}, or has it before an earlier one; "
                "write the nouns in the order of the pictures"
            )
        before = rest[:found]
        if protocol.noun_and_image:
            done += f"{before}{noun} <i>"
        else:
            done += before.removesuffix("an ").removesuffix("a ") + "<i>"
        rest = rest[found + len(noun) :]
    return done + rest
