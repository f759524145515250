"""Rows: every class of model that people fine-tune, each with its own Trainer where it has one."""

from typing import Any

from torch import nn
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, default_data_collator

from tests.settings.flags import EVALUATES, SAVES
from tests.settings.kinds import (
    ANSWERS,
    BART,
    CHOICES,
    DEBERTA,
    GPT2,
    LLAMA,
    LLAMA_CLASSIFIER,
    MASKED,
    MULTI_LABEL,
    REGRESSION,
    ROBERTA,
    T5,
    TOKENS,
    VIT,
    WAV2VEC2,
    WHISPER,
)
from tests.settings.row import Row, Setting

GENERATES: dict[str, Any] = EVALUATES | {"predict_with_generate": True, "generation_max_length": 8}


def _seq2seq(setting: Setting) -> nn.Module:
    arguments = setting.arguments(Seq2SeqTrainingArguments)
    trainer = setting.make_trainer(setting.model(), Seq2SeqTrainer, args=arguments)
    trainer.train()
    return trainer.model


def _decoder_inputs(model: Any) -> Any:
    """What DataCollatorForSeq2Seq does where the loss is not the model's own."""

    def collate(examples: list[Any]) -> Any:
        batch = default_data_collator(examples)
        ids = model.get_base_model().prepare_decoder_input_ids_from_labels(labels=batch["labels"])
        return batch | {"decoder_input_ids": ids}

    return collate


SMOOTHED: dict[str, Any] = {
    "arguments": {"label_smoothing_factor": 0.1},
    "trainer": {"data_collator": _decoder_inputs},
}


def _positional(setting: Setting) -> nn.Module:
    """A Trainer whose loss calls the model with its inputs by position."""

    class Positional(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            logits = model(inputs["input_ids"], inputs["attention_mask"]).logits
            return nn.functional.cross_entropy(logits, inputs["labels"])

    return setting.train(kind=Positional).model


CLASSES = [
    Row("RoBERTa", ROBERTA, SAVES, resume=(6,)),
    Row("DeBERTa", DEBERTA, base={"attn_implementation": "eager"}),
    Row("regression", REGRESSION),
    Row("several labels", MULTI_LABEL),
    Row("token classification", TOKENS, SAVES, resume=(2, 6)),
    Row("question answering", ANSWERS),
    Row("multiple choice", CHOICES, lora={"modules_to_save": ["classifier"]}),
    Row("masked language model", MASKED, SAVES, resume=(6,)),
    Row("masked language model, head trained", MASKED, lora={"modules_to_save": ["cls"]}),
    Row("causal language model", LLAMA, SAVES, resume=(2, 6)),
    Row("GPT-2", GPT2, lora={"fan_in_fan_out": True}),
    Row("LLaMA classifier", LLAMA_CLASSIFIER),
    Row("T5", T5, SAVES, resume=(2, 6)),
    Row("T5, label smoothing", T5, **SMOOTHED),
    Row("T5, generating", T5, GENERATES, run=_seq2seq),
    Row("BART, generating", BART, GENERATES, run=_seq2seq),
    Row("BART, label smoothing", BART, **SMOOTHED),
    Row("Whisper", WHISPER, run=_seq2seq),
    Row("wav2vec2", WAV2VEC2, lora={"modules_to_save": ["projector", "classifier"]}),
    Row("images", VIT, SAVES, lora={"modules_to_save": ["classifier"]}, resume=(6,)),
    Row("inputs by position", run=_positional),
]
