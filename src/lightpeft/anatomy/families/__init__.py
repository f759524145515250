"""The architectures lightpeft knows, by `config.model_type`. A new one is a row in one of these files."""

from lightpeft.anatomy.families.decoders import DECODERS
from lightpeft.anatomy.families.encoder_decoders import ENCODER_DECODERS
from lightpeft.anatomy.families.encoders import ENCODERS
from lightpeft.anatomy.families.vision_and_speech import VISION_AND_SPEECH
from lightpeft.anatomy.rows import Stack

FAMILIES: dict[str, tuple[Stack, ...]] = {
    **ENCODERS,
    **DECODERS,
    **ENCODER_DECODERS,
    **VISION_AND_SPEECH,
}

__all__ = ["DECODERS", "FAMILIES"]
