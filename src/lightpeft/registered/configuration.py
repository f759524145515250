"""The configuration of a merged folder in transformers' table of architectures."""

from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.configuration_auto import AutoConfig

from lightpeft.stock_names import MODEL_TYPE


class CutConfig(PreTrainedConfig):
    """The uncut model's values, under the name of an architecture that lightpeft alone builds."""

    model_type = MODEL_TYPE


AutoConfig.register(MODEL_TYPE, CutConfig)
