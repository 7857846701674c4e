"""BLIP-2, MPT, CLIPSeg, GroundingDINO, SAM 2 and SAM 3 as folders: the real classes, tiny sizes, random weights."""

from pathlib import Path

import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from .clip import SIZES, VOCABULARY, letter_tokenizer

TEXTS = [
    "a photo of a small brown dog wearing a red hat next to two children at the beach",
    "Below is an instruction that describes a task. Write a response. ### Instruction: ### Response: Nouns: Caption:",
]


def tokenizer(specials: dict[str, str], extra: tuple[str, ...] = ()):
    """A small byte-level BPE tokenizer."""
    bpe = Tokenizer(models.BPE(unk_token=specials.get("unk_token")))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    names = [*dict.fromkeys([*specials.values(), *extra])]
    trainer = trainers.BpeTrainer(
        vocab_size=320 + len(names),
        special_tokens=names,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(TEXTS, trainer)
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
        vocab_size=len(words),
        hidden_size=16,
        ffn_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        word_embed_proj_dim=16,
        pad_token_id=words.pad_token_id,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        tie_word_embeddings=False,
    )
    config = tf.Blip2Config(
        vision_config=SIZES | {"image_size": 32, "patch_size": 8},
        qformer_config=SIZES | {"encoder_hidden_size": 16, "vocab_size": 64},
        text_config=text.to_dict(),
        num_query_tokens=4,
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    torch.manual_seed(0)
    model = tf.Blip2ForConditionalGeneration(config)
    images = tf.BlipImageProcessor(size={"height": 32, "width": 32})
    return save(folder, model, tf.Blip2Processor(images, words, num_query_tokens=4))


def mpt(folder: Path) -> Path:
    words = tokenizer({"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"})
    torch.manual_seed(0)
    config = tf.MptConfig(
        d_model=32,
        n_heads=2,
        n_layers=2,
        max_seq_len=512,
        vocab_size=len(words),
        expansion_ratio=2,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )
    return save(folder, tf.MptForCausalLM(config), words)


def clipseg(folder: Path) -> Path:
    words = letter_tokenizer(folder / "letters")
    torch.manual_seed(0)
    config = tf.CLIPSegConfig(
        text_config=SIZES | VOCABULARY,
        vision_config=SIZES | {"num_hidden_layers": 4, "image_size": 32, "patch_size": 8},
        projection_dim=16,
        reduce_dim=8,
        extract_layers=[1, 2, 3],
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    model = tf.CLIPSegForImageSegmentation(config)
    images = tf.ViTImageProcessor(
        size={"height": 32, "width": 32}, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    )
    return save(folder, model, tf.CLIPSegProcessor(images, words))


def grounded(folder: Path) -> list[Path]:
    """SAM 2 and GroundingDINO."""
    names = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "dog", "red", "hat"]
    words = tf.BertTokenizer(vocab={name: number for number, name in enumerate(names)})
    torch.manual_seed(0)
    detector = tf.GroundingDinoConfig(
        backbone_config=tf.SwinConfig(
            window_size=7,
            image_size=224,
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 2, 2],
            out_features=["stage2", "stage3", "stage4"],
        ),
        text_config=tf.BertConfig(**SIZES, vocab_size=len(words), max_position_embeddings=64),
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        num_queries=10,
        num_feature_levels=4,
        encoder_n_points=2,
        decoder_n_points=2,
        max_text_len=32,
    )
    images = tf.GroundingDinoImageProcessor(size={"shortest_edge": 128, "longest_edge": 128})
    found = tf.GroundingDinoForObjectDetection(detector)
    save(folder / "dino", found, tf.GroundingDinoProcessor(images, words))
    parts = tf.models.sam2.configuration_sam2
    backbone = tf.Sam2HieraDetConfig(
        hidden_size=8,
        num_attention_heads=1,
        image_size=[128, 128],
        blocks_per_stage=[1, 2, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[8, 4, 2, 2],
        global_attention_blocks=[4],
        window_positional_embedding_background_size=[2, 2],
    )
    config = tf.Sam2Config(
        vision_config=tf.Sam2VisionConfig(
            backbone_config=backbone,
            backbone_channel_list=[64, 32, 16, 8],
            fpn_hidden_size=16,
            backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
        ),
        prompt_encoder_config=parts.Sam2PromptEncoderConfig(
            hidden_size=16, image_size=128, patch_size=16, mask_input_channels=4
        ),
        mask_decoder_config=parts.Sam2MaskDecoderConfig(
            hidden_size=16, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16
        ),
    )
    images = tf.Sam2ImageProcessor(size={"height": 128, "width": 128}, mask_size={"height": 32, "width": 32})
    save(folder / "sam2", tf.Sam2Model(config), tf.Sam2Processor(images, target_size=128))
    return [folder / "sam2", folder / "dino"]


def sam3(folder: Path) -> list[Path]:
    words = letter_tokenizer(folder / "letters")
    torch.manual_seed(0)
    parts = tf.models.sam3.configuration_sam3
    block = {"hidden_size": 32, "num_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = tf.Sam3Config(
        vision_config=parts.Sam3VisionConfig(
            backbone_config=parts.Sam3ViTConfig(
                hidden_size=32,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=112,
                patch_size=14,
                window_size=4,
                global_attn_indexes=[1],
                pretrain_image_size=56,
            ),
            fpn_hidden_size=32,
            backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
        ),
        text_config=tf.CLIPTextConfig(**SIZES, **VOCABULARY, max_position_embeddings=32, projection_dim=32),
        geometry_encoder_config=parts.Sam3GeometryEncoderConfig(**block),
        detr_encoder_config=parts.Sam3DETREncoderConfig(**block),
        detr_decoder_config=parts.Sam3DETRDecoderConfig(num_queries=6, **block),
        mask_decoder_config=parts.Sam3MaskDecoderConfig(hidden_size=32, num_attention_heads=2),
    )
    images = tf.Sam3ImageProcessor(size={"height": 112, "width": 112})
    return [save(folder, tf.Sam3Model(config), tf.Sam3Processor(images, words))]
