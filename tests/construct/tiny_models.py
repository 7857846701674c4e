"""BLIP-2, MPT, CLIPSeg, GroundingDINO, SAM 2 and SAM 3 as folders: the real classes, tiny sizes, random weights."""

from pathlib import Path

import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXTS = [
    "a photo of a small brown dog wearing a red hat next to two children at the beach",
    "Below is an instruction that describes a task. Write a response. ### Instruction: ### Response: Nouns: Caption:",
]


def tokenizer(specials: dict[str, str], extra: tuple[str, ...] = (), clip_template: bool = False):
    """A small byte-level BPE tokenizer."""
    bpe = Tokenizer(models.BPE(unk_token=specials.get("unk_token")))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    names = [*dict.fromkeys([*specials.values(), *extra])]
    trainer = trainers.BpeTrainer(
        vocab_size=320 + len(names), special_tokens=names, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    bpe.train_from_iterator(TEXTS, trainer)
    if clip_template:
        first, last = specials["bos_token"], specials["eos_token"]
        ids = [(first, bpe.token_to_id(first)), (last, bpe.token_to_id(last))]
        bpe.post_processor = processors.TemplateProcessing(single=f"{first} $A {last}", special_tokens=ids)
    return tf.PreTrainedTokenizerFast(tokenizer_object=bpe, **specials)


def save(folder: Path, model: torch.nn.Module, *parts) -> Path:
    """Weights large enough for the answer to depend on the input."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 2 * parameter.shape[1] ** -0.5, generator=generator)
    model.save_pretrained(folder)
    for part in parts:
        part.save_pretrained(folder)
    return folder


def blip2(folder: Path) -> Path:
    specials = {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    words = tokenizer(specials, ("<image>",))
    text = tf.OPTConfig(
        vocab_size=len(words), hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=128, word_embed_proj_dim=16, pad_token_id=words.pad_token_id,
        bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, tie_word_embeddings=False,
    )  # fmt: skip
    config = tf.Blip2Config(
        vision_config=SIZES | {"image_size": 32, "patch_size": 8},
        qformer_config=SIZES | {"encoder_hidden_size": 16, "vocab_size": 64},
        text_config=text.to_dict(),
        num_query_tokens=4,
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    torch.manual_seed(0)
    model = tf.Blip2ForConditionalGeneration(config)
    pictures = tf.BlipImageProcessor(size={"height": 32, "width": 32})
    return save(folder, model, tf.Blip2Processor(pictures, words, num_query_tokens=4))


def mpt(folder: Path) -> Path:
    words = tokenizer({"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"})
    torch.manual_seed(0)
    config = tf.MptConfig(
        d_model=32, n_heads=2, n_layers=2, max_seq_len=512, vocab_size=len(words), expansion_ratio=2,
        bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id,
    )  # fmt: skip
    return save(folder, tf.MptForCausalLM(config), words)


def clipseg(folder: Path) -> Path:
    words = tokenizer(
        {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>",
         "unk_token": "<|endoftext|>"},
        clip_template=True,
    )  # fmt: skip
    torch.manual_seed(0)
    config = tf.CLIPSegConfig(
        text_config=SIZES
        | {
            "vocab_size": len(words), "max_position_embeddings": 77, "bos_token_id": words.bos_token_id,
            "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id,
        },
        vision_config=SIZES | {"num_hidden_layers": 4, "image_size": 32, "patch_size": 8},
        projection_dim=16, reduce_dim=8, extract_layers=[1, 2, 3], decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )  # fmt: skip
    model = tf.CLIPSegForImageSegmentation(config)
    pictures = tf.ViTImageProcessor(
        size={"height": 32, "width": 32}, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    )
    return save(folder, model, tf.CLIPSegProcessor(pictures, words))
