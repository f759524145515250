"""Rows: the trainers and loops that people train with."""

from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from peft import PeftModel, get_peft_model
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast, default_data_collator

import lightpeft
from lightpeft import LightCallback, LightTrainer
from tests.settings.flags import SAVES
from tests.settings.kinds import WORDY
from tests.settings.row import ESTIMATION, Row, Setting, lora
from tests.support.language import sentences, word_tokenizer


def _light_trainer(setting: Setting) -> nn.Module:
    return setting.train(kind=LightTrainer).model


def _model_init(setting: Setting) -> nn.Module:
    trainer = setting.make_trainer(None, LightTrainer, model_init=lambda: setting.model())
    trainer.train()
    first = lightpeft.Plan.to_dict(trainer.light.plan)
    trainer.train()
    assert lightpeft.Plan.to_dict(trainer.light.plan) == first
    return trainer.model


def _model_init_with_callback(setting: Setting) -> nn.Module:
    trainer = setting.make_trainer(None, model_init=lambda: setting.model())
    trainer.train()
    trainer.train()
    return trainer.model


def _folds(setting: Setting) -> nn.Module:
    callback = LightCallback(setting.row.light)
    sizes = []
    for _ in range(3):
        trainer = setting.make_trainer(setting.model(), callbacks=[callback])
        trainer.train()
        sizes.append(sum(one.numel() for one in trainer.model.parameters()))
    assert max(sizes) < setting.whole
    return trainer.model


def _one_config_for_all(setting: Setting) -> nn.Module:
    """A search over rates that makes one LoraConfig and goes on with it."""
    kind = setting.row.kind
    config = lora(kind, kind.load_base(setting.base))
    sizes = []
    for _ in range(3):
        base = kind.load_base(setting.base)
        model = get_peft_model(base, config)
        assert isinstance(model, PeftModel)
        setting.whole = sum(one.numel() for one in model.parameters())
        sizes.append(setting.whole)
        trained = setting.train(model).model
    assert len(set(sizes)) == 1
    return trained


def _twice(setting: Setting) -> nn.Module:
    """One Trainer, told to train twice."""
    trainer = setting.train()
    trainer.train()
    return trainer.model


def _another_callback(setting: Setting) -> nn.Module:
    """A model that was cut, given to another run that would cut it."""
    return setting.train(setting.train().model).model


def _loader(setting: Setting) -> DataLoader[Any]:
    return DataLoader(setting.data()["train_dataset"], batch_size=4, collate_fn=default_data_collator)


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [one for one in model.parameters() if one.requires_grad]


def _plain_loop(setting: Setting) -> nn.Module:
    model, light = setting.model(), setting.row.light
    optimizer = torch.optim.AdamW(_trainable(model), lr=1e-3)
    batches = list(_loader(setting))
    scores = lightpeft.estimate(model, batches, light.estimation, optimizer=optimizer)
    plan = lightpeft.make_plan(scores, lightpeft.find_anatomy(model), light.budget)
    lightpeft.cut(model, plan, optimizer, scores=scores, batch=batches[0])
    for batch in batches[ESTIMATION:]:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def _accelerated(setting: Setting) -> tuple[Accelerator, Any, Any, Any]:
    accelerator = Accelerator(cpu=True)
    model = setting.model()
    optimizer = torch.optim.AdamW(_trainable(model), lr=1e-3)
    model, optimizer, loader = accelerator.prepare(model, optimizer, _loader(setting))
    batches = list(loader)
    light = setting.row.light
    scores = lightpeft.estimate(model, batches, light.estimation, optimizer=optimizer)
    plan = lightpeft.make_plan(scores, lightpeft.find_anatomy(model), light.budget)
    lightpeft.cut(model, plan, optimizer, scores=scores, batch=batches[0])
    return accelerator, model, optimizer, batches


def _steps(accelerator: Accelerator, model: Any, optimizer: Any, batches: Any) -> None:
    model.train()
    for batch in batches[ESTIMATION:]:
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch).loss)
            optimizer.step()
            optimizer.zero_grad()


def _accelerate_loop(setting: Setting) -> nn.Module:
    accelerator, model, optimizer, batches = _accelerated(setting)
    _steps(accelerator, model, optimizer, batches)
    unwrapped: nn.Module = accelerator.unwrap_model(model)
    return unwrapped


def _accelerate_states(setting: Setting) -> nn.Module:
    """Saves its state after the cut, trains, goes back to the state, and trains the same again."""
    accelerator, model, optimizer, batches = _accelerated(setting)
    accelerator.save_state(str(setting.folder / "state"))
    _steps(accelerator, model, optimizer, batches)
    once = {name: one.clone() for name, one in model.state_dict().items()}
    accelerator.load_state(str(setting.folder / "state"))
    _steps(accelerator, model, optimizer, batches)
    assert all(torch.equal(once[name], one) for name, one in model.state_dict().items())
    unwrapped: nn.Module = accelerator.unwrap_model(model)
    return unwrapped


def _tokenizer(setting: Setting) -> PreTrainedTokenizerFast:
    tokenizer = word_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    owned: PreTrainedTokenizerFast = setting.own("the tokenizer", tokenizer)
    return owned


def _trl(trainer: str, columns: Any, *, wrapped: bool = True, reference: bool = False, **options: Any) -> Any:
    """A run of one of TRL's trainers on texts."""

    def run(setting: Setting) -> nn.Module:
        import trl

        kind, config = getattr(trl, f"{trainer}Trainer"), getattr(trl, f"{trainer}Config")
        row_kind = setting.row.kind
        more: dict[str, Any] = {}
        if reference:
            more["ref_model"] = row_kind.load_base(setting.base)
        if wrapped:
            model: Any = setting.model()
        else:
            model = row_kind.load_base(setting.base)
            more["peft_config"] = lora(row_kind, model)
        made = kind(
            model=model,
            args=setting.arguments(config, **options),
            train_dataset=setting.own("the training data", Dataset.from_list(columns())),
            processing_class=_tokenizer(setting),
            callbacks=[LightCallback(setting.row.light)],
            **more,
        )
        setting.whole = setting.whole or sum(one.numel() for one in made.model.parameters())
        made.train()
        return made.model

    return run


def _texts() -> list[dict[str, Any]]:
    return [{"text": text} for text in sentences(48)]


def _completions() -> list[dict[str, Any]]:
    words = [text.split() for text in sentences(32)]
    return [{"prompt": " ".join(one[:2]), "completion": " " + " ".join(one[2:])} for one in words]


def _pairs() -> list[dict[str, Any]]:
    pairs = zip(sentences(32, seed=1), sentences(32, seed=2), strict=True)
    return [{"prompt": "the cat", "chosen": f" {one}", "rejected": f" {other}"} for one, other in pairs]


def _judged() -> list[dict[str, Any]]:
    return [{**one, "label": number % 2 == 0} for number, one in enumerate(_completions())]


TRL = ("`gradient_checkpointing",)

TRAINERS = [
    Row("LightTrainer", arguments=SAVES, run=_light_trainer, resume=(2, 6)),
    Row("model_init", run=_model_init),
    Row("model_init and the callback", run=_model_init_with_callback),
    Row("folds with one callback", run=_folds),
    Row("one configuration for all", run=_one_config_for_all),
    Row("one Trainer twice", run=_twice),
    Row("a cut model under another callback", run=_another_callback, refusal="cut in an earlier run"),
    Row("plain loop", run=_plain_loop),
    Row("accelerate", run=_accelerate_loop),
    Row("accelerate with states", run=_accelerate_states),
    Row("SFT", WORDY, warns=TRL, run=_trl("SFT", _texts)),
    Row("SFT, configuration given", WORDY, warns=TRL, run=_trl("SFT", _texts, wrapped=False)),
    Row(
        "SFT, packed",
        WORDY,
        warns=TRL,
        run=_trl("SFT", _texts, packing=True, max_length=16, padding_free=False),
    ),
    Row(
        "SFT, packed and wrapped",
        WORDY,
        warns=TRL,
        run=_trl("SFT", _texts, packing=True, packing_strategy="wrapped", max_length=16),
    ),
    Row("SFT, completions only", WORDY, warns=TRL, run=_trl("SFT", _completions, completion_only_loss=True)),
    Row(
        "SFT, bf16 and checkpointing",
        WORDY,
        warns=TRL,
        run=_trl("SFT", _texts, bf16=True, activation_checkpointing=True),
    ),
    Row("DPO with a reference", WORDY, warns=TRL, run=_trl("DPO", _pairs, reference=True)),
    Row(
        "DPO, reference computed before",
        WORDY,
        warns=TRL,
        run=_trl("DPO", _pairs, precompute_ref_log_probs=True),
    ),
    Row("DPO without a reference", WORDY, warns=TRL, run=_trl("DPO", _pairs), refusal="reference"),
    Row(
        "DPO, configuration given",
        WORDY,
        warns=TRL,
        run=_trl("DPO", _pairs, wrapped=False),
        refusal="reference",
    ),
    Row("KTO without a reference", WORDY, warns=TRL, run=_trl("KTO", _judged), refusal="reference"),
]
