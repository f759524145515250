"""Encoders of images and sound, and CLIP's two towers."""

from dataclasses import replace

from lightpeft.anatomy.families.encoder_decoders import BART, BART_SELF
from lightpeft.anatomy.rows import FFN, Attention, Stack, Stock, separate

MLP = FFN(("mlp.fc1",), "mlp.fc2")
VIT_ATTENTION = Attention(
    "attention",
    "attention.o_proj",
    separate("q_proj", "k_proj", "v_proj"),
    follow={"num_attention_heads": "heads"},
)
VIT_STOCK = Stock(heads={"num_attention_heads": "heads", "head_dim": "size"})
DINOV2_STOCK = replace(
    VIT_STOCK,
    neurons=None,
    derived=("stage_names", "out_features", "out_indices", "_out_features", "_out_indices"),
)
VIT = Stack("layers", VIT_ATTENTION, MLP, stock=VIT_STOCK)

CLIP_TEXT = Stack("text_model.encoder.layers", BART_SELF, MLP, title="text layer", stock=Stock())
CLIP_VISION = Stack("vision_model.encoder.layers", BART_SELF, MLP, title="vision layer", stock=Stock())


def _in_clip(tower: Stack, key: str) -> Stack:
    """A tower whose configuration is nested in that of both."""
    return replace(tower, stock=Stock(f"{key}.intermediate_size", layers=f"{key}.num_hidden_layers"))


WAV2VEC2 = Stack(
    "encoder.layers",
    replace(BART_SELF, module="attention", out="attention.out_proj"),
    FFN(("feed_forward.intermediate_dense",), "feed_forward.output_dense"),
    stock=Stock(),
)

VISION_AND_SPEECH: dict[str, tuple[Stack, ...]] = {
    "vit": (VIT,),
    "dinov2": (replace(VIT, layers="encoder.layer", stock=DINOV2_STOCK),),
    "clip": (_in_clip(CLIP_TEXT, "text_config"), _in_clip(CLIP_VISION, "vision_config")),
    "clip_text_model": (CLIP_TEXT,),
    "clip_vision_model": (CLIP_VISION,),
    "whisper": BART,
    "wav2vec2": (WAV2VEC2,),
}
