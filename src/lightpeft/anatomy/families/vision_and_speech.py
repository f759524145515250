"""Encoders of images and sound, and CLIP's two towers."""

from dataclasses import replace

from lightpeft.anatomy.families.encoder_decoders import BART, BART_SELF
from lightpeft.anatomy.rows import FFN, Attention, Stack, separate

MLP = FFN(("mlp.fc1",), "mlp.fc2")
VIT_ATTENTION = Attention(
    "attention",
    "attention.o_proj",
    separate("q_proj", "k_proj", "v_proj"),
    follow={"num_attention_heads": "heads"},
)
VIT = Stack("layers", VIT_ATTENTION, MLP)

CLIP_TEXT = Stack("text_model.encoder.layers", BART_SELF, MLP, title="text layer")
CLIP_VISION = Stack("vision_model.encoder.layers", BART_SELF, MLP, title="vision layer")

WAV2VEC2 = Stack(
    "encoder.layers",
    replace(BART_SELF, module="attention", out="attention.out_proj"),
    FFN(("feed_forward.intermediate_dense",), "feed_forward.output_dense"),
)

VISION_AND_SPEECH: dict[str, tuple[Stack, ...]] = {
    "vit": (VIT,),
    "dinov2": (replace(VIT, layers="encoder.layer"),),
    "clip": (CLIP_TEXT, CLIP_VISION),
    "clip_text_model": (CLIP_TEXT,),
    "clip_vision_model": (CLIP_VISION,),
    "whisper": BART,
    "wav2vec2": (WAV2VEC2,),
}
