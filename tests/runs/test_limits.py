"""What a base can take is known from its configuration, and is what the base itself does."""

import logging

import pytest
import torch
from tests.support.zoo import ANIMALS, Animal
from transformers import PreTrainedModel

from lightpeft.errors import ConfigError
from lightpeft.run_config import OTHER_SCHEDULES, SCHEDULES, TrainingConfig
from lightpeft.runs.limits import position_limit, within_positions

LONG = 130
"""Three times the 40 positions that most animals' configurations name."""

TEXT = {animal.name: animal for animal in ANIMALS if animal.task in ("text", "causal", "seq2seq")}


def runs(model: PreTrainedModel, tokens: int) -> bool:
    ids = torch.randint(5, 90, (1, tokens))
    decoder = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids), **decoder)
    except (RuntimeError, IndexError):
        return False
    return True


@pytest.mark.parametrize("animal", TEXT.values(), ids=TEXT)
def test_a_base_takes_as_many_tokens_as_it_is_said_to(animal: Animal) -> None:
    model = animal.build("eager")
    limit = position_limit(model)
    if limit is None:
        assert runs(model, LONG)
    else:
        assert runs(model, limit)
        assert not runs(model, limit + 1)


def test_the_default_length_gives_way_and_a_wanted_one_does_not(caplog: pytest.LogCaptureFixture) -> None:
    roberta = TEXT["roberta"].build("eager")
    limit = position_limit(roberta)
    assert limit == roberta.config.max_position_embeddings - roberta.config.pad_token_id - 1
    assert within_positions(TrainingConfig(), roberta, "it").max_length == limit
    assert f"it has {limit} positions: training.max_length is {limit} instead of 128" in caplog.text
    caplog.clear()
    assert within_positions(TrainingConfig(max_length=limit), roberta, "it").max_length == limit
    assert within_positions(TrainingConfig(), TEXT["llama"].build("eager"), "it").max_length == 128
    assert not [entry for entry in caplog.records if entry.levelno >= logging.WARNING]
    with pytest.raises(ConfigError, match=f"is 128, but it has only {limit} positions"):
        within_positions(TrainingConfig(max_length=128), roberta, "it")


def test_every_schedule_of_transformers_runs_or_is_refused_with_a_reason() -> None:
    from transformers import get_scheduler
    from transformers.trainer_utils import SchedulerType

    assert {kind.value for kind in SchedulerType} == {*SCHEDULES, *OTHER_SCHEDULES}
    for name in SCHEDULES:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=TrainingConfig().learning_rate)
        scheduler = get_scheduler(name, optimizer, num_warmup_steps=2, num_training_steps=4)
        for _ in range(4):
            optimizer.step()
            scheduler.step()
    for name in OTHER_SCHEDULES:
        with pytest.raises(ConfigError, match=f"{name}' cannot be used: it "):
            TrainingConfig(schedule=name)
