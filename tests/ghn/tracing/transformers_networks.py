"""Small networks of transformers, made from configurations without a download, and what they are called with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import transformers
from examples import CLASSES
from torch import Tensor, nn

from ghn.tracing.trace import Inputs

SIDE = 32
"""Side of images, in pixels, where a network says nothing else."""

WORDS = 60
"""Size of the vocabularies."""

TOKENS = 7
"""Length of the longer one of two texts."""


class Case(NamedTuple):
    """The fields of a network's configuration, and its inputs; None: images, as they are guessed."""

    settings: dict[str, Any]
    make_inputs: Callable[[], Inputs] | None


def case(make_inputs: Callable[[], Inputs] | None = None, **settings: Any) -> Case:
    """Return a case of a configuration with these fields."""
    return Case(settings, make_inputs)


def network_of(name: str) -> nn.Module:
    """Return a network by the name of its class, with random parameters."""
    kind = getattr(transformers, name)
    network: nn.Module = kind(kind.config_class(num_labels=CLASSES, **NETWORKS[name].settings))
    return network


def inputs_of(name: str) -> Inputs:
    """Return what a network is called with."""
    settings, make_inputs = NETWORKS[name]
    side = settings.get("image_size", SIDE)
    return images(side) if make_inputs is None else make_inputs()


# Inputs


def images(side: int = SIDE) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def films() -> Tensor:
    return torch.randn(2, 4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def ids(length: int = TOKENS) -> Tensor:
    return torch.randint(3, WORDS - 1, (2, length), generator=torch.Generator().manual_seed(0))


def texts(**more: Tensor) -> dict[str, Tensor]:
    """Return two texts as a tokeniser gives them: the second one is shorter."""
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[1, -2:] = 0
    return {"input_ids": ids(), "attention_mask": mask, **more}


def ended() -> dict[str, Tensor]:
    """Return two texts that the token 2 ends, which some networks look for."""
    return {"input_ids": torch.tensor([[5, 6, 7, 2], [8, 9, 10, 2]])}


def translations() -> dict[str, Tensor]:
    return texts(decoder_input_ids=ids(5))


def captions() -> dict[str, Tensor]:
    return texts(pixel_values=images())


def forms(**more: Tensor) -> dict[str, Tensor]:
    """Return texts of which each word has a box on a page."""
    corners = torch.randint(0, 9, (2, TOKENS, 4), generator=torch.Generator().manual_seed(2))
    return texts(bbox=corners.sort(-1).values, **more)


def talks() -> dict[str, Tensor]:
    """Return texts of which 16 words stand for the patches of an image."""
    return {"input_ids": torch.cat([torch.full((2, 16), WORDS - 1), ids()], 1), "pixel_values": images()}


def sounds() -> Tensor:
    return torch.randn(2, 4000, generator=torch.Generator().manual_seed(2))


def spectra(*shape: int) -> Tensor:
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(3))


# Configurations

SMALL = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
TOKEN_IDS = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
PATCHES = dict(**SMALL, image_size=SIDE, patch_size=8)
READS = dict(**SMALL, **TOKEN_IDS, vocab_size=WORDS, max_position_embeddings=40)
LLAMA = dict(**READS, num_key_value_heads=1, head_dim=8)
GPT = dict(**TOKEN_IDS, vocab_size=WORDS, n_positions=40, n_embd=16, n_layer=2, n_head=2)
T5 = dict(vocab_size=WORDS, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0)
SEQUENCE = dict(d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2)
BART = dict(**SEQUENCE, **TOKEN_IDS, vocab_size=WORDS, encoder_ffn_dim=32, decoder_ffn_dim=32, decoder_start_token_id=1)
STAGES = dict(hidden_sizes=[8, 16], depths=[1, 2])
RESIDUAL = dict(**STAGES, embedding_size=8)
SWIN = dict(image_size=SIDE, patch_size=2, embed_dim=8, num_heads=[2, 2], window_size=4, depths=[1, 2])
PYRAMID = dict(hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, num_attention_heads=[1] * 4)
LISTENS = dict(conv_dim=[8] * 3, conv_stride=[5, 4, 4], conv_kernel=[10, 4, 4], num_feat_extract_layers=3)
SPEECH = dict(**SMALL, **LISTENS, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, classifier_proj_size=8)
LATENT = dict(
    kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=4, v_head_dim=8, qk_nope_head_dim=4, num_key_value_heads=2
)
ROUTED = dict(n_routed_experts=4, n_group=2, topk_group=1, num_experts_per_tok=2, moe_intermediate_size=16)
BACKBONE = dict(**RESIDUAL | dict(hidden_sizes=[8, 8, 16, 16], depths=[1] * 4), out_features=["stage4"])
BOTH = dict(text_config=READS | dict(projection_dim=16), vision_config=PATCHES | dict(projection_dim=16))

NETWORKS: dict[str, Case] = {
    # Images
    "BeitForImageClassification": case(**PATCHES, use_relative_position_bias=True, use_mask_token=True),
    "BitForImageClassification": case(**RESIDUAL, num_groups=2),
    "ConvNextForImageClassification": case(**STAGES, num_stages=2),
    "ConvNextV2ForImageClassification": case(**STAGES, num_stages=2),
    "CvtForImageClassification": case(embed_dim=[8, 16, 16], num_heads=[1, 2, 2], depth=[1, 2, 3]),
    "DINOv3ViTModel": case(**PATCHES),
    "DPTForDepthEstimation": case(
        **PATCHES | dict(num_hidden_layers=4, backbone_out_indices=[0, 1, 2, 3]),
        **dict(neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=8),
    ),
    "DeiTForImageClassificationWithTeacher": case(**PATCHES),
    "DetrForObjectDetection": case(
        **{key: value for key, value in BART.items() if key in SEQUENCE},
        **dict(num_queries=4, encoder_ffn_dim=16, decoder_ffn_dim=16, use_timm_backbone=False, backbone=None),
        backbone_config=dict(BACKBONE, model_type="resnet", layer_type="basic"),
    ),
    "Dinov2ForImageClassification": case(**PATCHES),
    "EfficientNetForImageClassification": case(
        image_size=64, width_coefficient=0.25, depth_coefficient=0.3, hidden_dim=320
    ),
    "FocalNetForImageClassification": case(
        image_size=SIDE, embed_dim=8, **STAGES, focal_levels=[2, 2], focal_windows=[3, 3]
    ),
    "HGNetV2ForImageClassification": case(
        **dict(embedding_size=8, stem_channels=[3, 8, 8], hidden_sizes=[8, 8, 16, 16]),
        **dict(stage_in_channels=[8, 8, 8, 16], stage_mid_channels=[8] * 4, stage_out_channels=[8, 8, 16, 16]),
        stage_num_blocks=[1] * 4,
    ),
    "HieraForImageClassification": case(
        lambda: images(64), image_size=[64, 64], embed_dim=8, depths=[1] * 4, num_heads=[1] * 4
    ),
    "ImageGPTForImageClassification": case(
        lambda: ids(49), vocab_size=65, n_positions=64, n_embd=16, n_layer=2, n_head=2
    ),
    "LevitForImageClassification": case(
        image_size=64, hidden_sizes=[16] * 3, num_attention_heads=[2] * 3, depths=[1] * 3, key_dim=[4] * 3
    ),
    "MobileNetV1ForImageClassification": case(depth_multiplier=0.25, min_depth=8),
    "MobileNetV2ForImageClassification": case(depth_multiplier=0.25, image_size=64),
    "MobileViTForImageClassification": case(
        image_size=64, hidden_sizes=[16] * 3, neck_hidden_sizes=[8] * 6 + [16], num_attention_heads=2
    ),
    "MobileViTV2ForImageClassification": case(
        image_size=64, base_attn_unit_dims=[16] * 3, n_attn_blocks=[1] * 3, width_multiplier=0.25
    ),
    "PoolFormerForImageClassification": case(hidden_sizes=[8, 8, 16, 16], depths=[1] * 4),
    "PvtForImageClassification": case(**PYRAMID, image_size=64),
    "PvtV2ForImageClassification": case(**PYRAMID, image_size=64),
    "RegNetForImageClassification": case(**RESIDUAL, groups_width=4),
    "ResNetForImageClassification": case(**RESIDUAL, layer_type="basic"),
    "SegformerForSemanticSegmentation": case(**PYRAMID, decoder_hidden_size=16, image_size=64),
    "SuperPointForKeypointDetection": case(
        images, encoder_hidden_sizes=[8] * 4, decoder_hidden_size=8, descriptor_decoder_dim=8
    ),
    "SwiftFormerForImageClassification": case(depths=[1] * 4, embed_dims=[8, 8, 16, 16]),
    "SwinForImageClassification": case(**SWIN),
    "Swinv2ForImageClassification": case(**SWIN),
    "TimesformerForVideoClassification": case(films, **PATCHES, num_frames=4),
    "UperNetForSemanticSegmentation": case(
        **dict(hidden_size=8, pool_scales=[1, 2], auxiliary_in_channels=8, auxiliary_channels=8, image_size=64),
        backbone_config=dict(
            model_type="convnext",
            hidden_sizes=[8, 8, 8, 16],
            depths=[1] * 4,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
    ),
    "ViTForImageClassification": case(**PATCHES),
    "ViTMAEForPreTraining": case(
        **PATCHES, decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2
    ),
    "ViTModel": case(**PATCHES),
    "VideoMAEForVideoClassification": case(films, **PATCHES, num_frames=4),
    "VitDetModel": case(
        **PATCHES | dict(intermediate_size=None), pretrain_image_size=SIDE, use_relative_position_embeddings=True
    ),
    # Texts
    "AlbertForSequenceClassification": case(texts, **READS, embedding_size=8),
    "BartForConditionalGeneration": case(translations, **BART),
    "BartForSequenceClassification": case(ended, **BART),
    "BertForMaskedLM": case(texts, **READS),
    "BertForSequenceClassification": case(texts, **READS),
    "BertModel": case(texts, **READS),
    "BloomForCausalLM": case(texts, vocab_size=WORDS, hidden_size=16, n_layer=2, n_head=2),
    "CanineForSequenceClassification": case(
        lambda: {"input_ids": ids(8)},
        **SMALL | dict(max_position_embeddings=40, local_transformer_stride=4, downsampling_rate=2),
    ),
    "DebertaForSequenceClassification": case(texts, **READS, relative_attention=True, pos_att_type=["c2p", "p2c"]),
    "DebertaV2ForSequenceClassification": case(
        texts, **READS, relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=4, share_att_key=True
    ),
    "DeepseekV3ForCausalLM": case(texts, **READS, **LATENT, **ROUTED, first_k_dense_replace=1),
    "DistilBertForSequenceClassification": case(texts, vocab_size=WORDS, dim=16, n_layers=2, n_heads=2, hidden_dim=32),
    "ElectraForSequenceClassification": case(texts, **READS, embedding_size=8),
    "FNetForSequenceClassification": case(
        ids, **{key: value for key, value in READS.items() if key != "num_attention_heads"}
    ),
    "FalconForCausalLM": case(texts, vocab_size=WORDS, hidden_size=16, num_hidden_layers=2, num_attention_heads=2),
    "FunnelForSequenceClassification": case(
        texts, vocab_size=WORDS, block_sizes=[1, 1], d_model=16, n_head=2, d_head=8, d_inner=32
    ),
    "GPT2ForSequenceClassification": case(texts, **GPT),
    "GPT2LMHeadModel": case(texts, **GPT),
    "GPTNeoXForCausalLM": case(texts, **READS),
    "Gemma3ForCausalLM": case(texts, **LLAMA),
    "GemmaForCausalLM": case(texts, **LLAMA),
    "GptOssForCausalLM": case(texts, **LLAMA, num_local_experts=4, num_experts_per_tok=2),
    "LEDForConditionalGeneration": case(
        translations, **BART, attention_window=4, max_encoder_position_embeddings=40, max_decoder_position_embeddings=40
    ),
    "Llama4ForCausalLM": case(texts, **LLAMA, num_local_experts=4, intermediate_size_mlp=32),
    "LlamaForCausalLM": case(texts, **LLAMA),
    "LlamaForSequenceClassification": case(texts, **LLAMA),
    "LongformerForSequenceClassification": case(texts, **READS, attention_window=4),
    "Mamba2ForCausalLM": case(
        ids, **SMALL | dict(vocab_size=WORDS, state_size=4, num_heads=4, head_dim=8, n_groups=2, chunk_size=4)
    ),
    "MambaForCausalLM": case(ids, vocab_size=WORDS, hidden_size=16, num_hidden_layers=2, state_size=4),
    "MistralForCausalLM": case(texts, **LLAMA, sliding_window=4),
    "MixtralForCausalLM": case(texts, **LLAMA, num_local_experts=4),
    "MobileBertForSequenceClassification": case(
        texts, **READS, embedding_size=16, true_hidden_size=8, intra_bottleneck_size=8
    ),
    "ModernBertForSequenceClassification": case(texts, **READS, sep_token_id=2, cls_token_id=1),
    "MptForCausalLM": case(texts, vocab_size=WORDS, d_model=16, n_heads=2, n_layers=2, max_seq_len=40),
    "NystromformerForSequenceClassification": case(lambda: ids(8), **READS, num_landmarks=4, segment_means_seq_len=8),
    "OPTForCausalLM": case(
        texts,
        **dict(vocab_size=WORDS, hidden_size=16, num_hidden_layers=2, num_attention_heads=2),
        **dict(ffn_dim=32, max_position_embeddings=40, word_embed_proj_dim=8),
    ),
    "PerceiverForSequenceClassification": case(
        lambda: {"inputs": ids(8)},
        **dict(vocab_size=WORDS, max_position_embeddings=40, num_latents=4, d_latents=16, d_model=16),
        **dict(num_self_attends_per_block=1, num_self_attention_heads=2, num_cross_attention_heads=2),
    ),
    "Qwen2ForCausalLM": case(texts, **LLAMA),
    "RecurrentGemmaForCausalLM": case(
        ids, **READS | dict(num_hidden_layers=3, num_key_value_heads=1, lru_width=16, attention_window_size=4)
    ),
    "ReformerModel": case(
        lambda: ids(8),
        **dict(vocab_size=WORDS, hidden_size=16, num_attention_heads=2, attention_head_size=8, feed_forward_size=32),
        **dict(axial_pos_shape=[2, 4], axial_pos_embds_dim=[8, 8], lsh_attn_chunk_length=4, local_attn_chunk_length=4),
        **dict(attn_layers=["local", "lsh"], num_buckets=2),
    ),
    "RoFormerForSequenceClassification": case(texts, **READS, embedding_size=16),
    "RobertaForSequenceClassification": case(texts, **READS),
    "RwkvForCausalLM": case(ids, vocab_size=WORDS, hidden_size=16, num_hidden_layers=2, context_length=40),
    "SwitchTransformersForConditionalGeneration": case(
        translations, **T5, num_experts=2, num_sparse_encoder_layers=1, num_decoder_layers=2
    ),
    "T5ForConditionalGeneration": case(translations, **T5),
    "T5ForSequenceClassification": case(ended, **T5, eos_token_id=2),
    "XLNetForSequenceClassification": case(texts, vocab_size=WORDS, d_model=16, n_layer=2, n_head=2, d_inner=32),
    # Sounds
    "ASTForAudioClassification": case(
        lambda: spectra(32, 16),
        **SMALL | dict(patch_size=8, max_length=32, num_mel_bins=16, frequency_stride=8, time_stride=8),
    ),
    "DacModel": case(
        lambda: spectra(1, 640),
        **dict(encoder_hidden_size=8, downsampling_ratios=[2, 2], decoder_hidden_size=16),
        **dict(n_codebooks=2, codebook_size=16, codebook_dim=4),
    ),
    "EncodecModel": case(
        lambda: spectra(1, 640),
        **dict(num_filters=4, hidden_size=16, codebook_size=16, codebook_dim=16, upsampling_ratios=[4, 2]),
    ),
    "HubertForSequenceClassification": case(sounds, **SPEECH),
    "SEWDForSequenceClassification": case(
        sounds, **SPEECH, squeeze_factor=2, max_position_embeddings=40, position_buckets=4
    ),
    "SEWForSequenceClassification": case(sounds, **SPEECH, squeeze_factor=2),
    "Wav2Vec2BertForSequenceClassification": case(
        lambda: spectra(12, 16),
        **SMALL | dict(feature_projection_input_dim=16, conv_depthwise_kernel_size=3),
        **dict(left_max_position_embeddings=4, right_max_position_embeddings=4),
    ),
    "Wav2Vec2ForSequenceClassification": case(sounds, **SPEECH),
    "WavLMForSequenceClassification": case(sounds, **SPEECH),
    "WhisperForConditionalGeneration": case(
        lambda: {"input_features": spectra(8, 40), "decoder_input_ids": ids(5)},
        **BART | dict(max_source_positions=20, max_target_positions=40, num_mel_bins=8),
    ),
    # Several at once
    "BlipForConditionalGeneration": case(captions, **BOTH, projection_dim=16),
    "CLIPModel": case(captions, **BOTH, projection_dim=16),
    "FlavaModel": case(
        captions,
        **dict(text_config=READS, image_config=PATCHES, multimodal_config=SMALL, projection_dim=8, hidden_size=16),
    ),
    "GitForCausalLM": case(captions, **READS, vision_config=PATCHES),
    "GroupViTModel": case(
        captions,
        **dict(text_config=READS, projection_dim=8, projection_intermediate_dim=16),
        vision_config=PATCHES | dict(depths=[1] * 3, num_group_tokens=[4, 2, 0], num_output_groups=[4, 2, 0]),
    ),
    "LayoutLMForSequenceClassification": case(forms, **READS, max_2d_position_embeddings=20),
    "LayoutLMv3ForSequenceClassification": case(
        lambda: forms(pixel_values=images()),
        **READS | dict(input_size=SIDE, patch_size=8, coordinate_size=3, shape_size=2, max_2d_position_embeddings=20),
    ),
    "LlavaForConditionalGeneration": case(
        talks,
        text_config=LLAMA | dict(model_type="llama"),
        vision_config=PATCHES | dict(model_type="clip_vision_model"),
        **dict(image_token_index=WORDS - 1, vision_feature_layer=-1),
    ),
    "Owlv2ForObjectDetection": case(captions, **BOTH, projection_dim=16),
    "PatchTSTForClassification": case(
        lambda: spectra(32, 3),
        **dict(num_input_channels=3, context_length=32, patch_length=8, patch_stride=8, num_targets=CLASSES),
        **dict(d_model=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=32),
    ),
    "SiglipModel": case(captions, text_config=READS, vision_config=PATCHES),
    "ViltForQuestionAnswering": case(
        captions, **PATCHES, vocab_size=WORDS, max_position_embeddings=40, max_image_length=-1
    ),
}

LEFT_OUT: dict[str, tuple[str, ...]] = {
    "BeitForImageClassification": ("mask_token",),
    "CanineForSequenceClassification": ("projection", "final_char_encoder"),  # the classes need no single characters
    "DINOv3ViTModel": ("mask_token", "register_tokens"),  # there are no such tokens
    "DPTForDepthEstimation": ("dpt.layernorm", "layers.0.residual_layer1"),
    "Dinov2ForImageClassification": ("mask_token",),
    "EncodecModel": ("encoder", "codebook"),  # the decoder reads codes, which have no gradient
    "FlavaModel": ("logit_scale", "mask_token", "projection"),
    "HubertForSequenceClassification": ("masked_spec_embed",),
    "LEDForConditionalGeneration": ("_global",),  # no token looks at all others
    "LlavaForConditionalGeneration": ("post_layernorm",),
    "Owlv2ForObjectDetection": ("logit_scale", "visual_projection"),
    "ReformerModel": ("encoder.layers",),  # they run within a function of its own, without a record
    "SEWDForSequenceClassification": ("masked_spec_embed",),
    "SEWForSequenceClassification": ("masked_spec_embed",),
    "SwitchTransformersForConditionalGeneration": ("expert_",),  # experts that no token has chosen
    "UperNetForSemanticSegmentation": ("auxiliary_head",),
    "Wav2Vec2BertForSequenceClassification": ("masked_spec_embed",),
    "Wav2Vec2ForSequenceClassification": ("masked_spec_embed",),
    "WavLMForSequenceClassification": ("masked_spec_embed",),
    "XLNetForSequenceClassification": ("mask_emb", "r_s_bias", "seg_embed"),  # there are no segments
}
"""Parts of the names of the parameters that nothing is predicted for: the output has no gradient for them."""

WITHOUT_ATTENTION = (
    *("Bit", "ConvNext", "Dac", "EfficientNet", "Encodec", "FNet", "FocalNet", "HGNetV2", "MobileNetV"),
    *("MobileViTV2", "PoolFormer", "Reformer", "RegNet", "ResNet", "Rwkv", "SuperPoint", "SwiftFormer", "UperNet"),
)
"""How the names of networks begin that have no attention of products, or, as Reformer, none on record."""

WITHOUT_GRADIENTS = ("ReformerModel", "RwkvForCausalLM")
"""Networks that have no gradients in evaluation mode, predicted or not."""
