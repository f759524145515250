"""`training.quantization`: how the frozen base is kept while an adapter is trained on it (QLoRA)."""

from typing import Any

import torch
from peft import prepare_model_for_kbit_training
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.utils.import_utils import is_bitsandbytes_available

from lightpeft.checkpoint import keep_packing
from lightpeft.errors import ConfigError
from lightpeft.run_config import Quantization

COMPUTE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""By `training.precision`, what NF4 is multiplied in."""


def quantization_config(
    quantization: Quantization, outline: PreTrainedModel, precision: str = "float32"
) -> BitsAndBytesConfig:
    """As `from_pretrained` and `load` take it; heads and poolers, which may be new, stay floats.

    Args:
        outline: of the base, for the names of its heads; no values are needed.

    Raises:
        ConfigError: bitsandbytes is missing.
    """
    if not is_bitsandbytes_available():
        raise ConfigError(
            f"training.quantization {quantization} needs bitsandbytes, which is not installed: "
            'pip install "lightpeft[quantization]"'
        )
    heads = [name for name, _ in outline.named_children() if name != outline.base_model_prefix]
    heads += ["pooler", f"{outline.base_model_prefix}.pooler"]
    floats: dict[str, Any] = {"llm_int8_skip_modules": heads}
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, **floats)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=COMPUTE[precision], **floats
    )


def prepared(base: PreTrainedModel) -> PreTrainedModel:
    """With norms and heads in float32, as PEFT wants a quantised base before an adapter is put on it."""
    made: PreTrainedModel = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    keep_packing(made)
    return made
