"""Loading bases and putting LoRA on them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.support.probing import random_scores
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ErnieConfig,
    ErnieModel,
    MambaConfig,
    RobertaConfig,
    RobertaModel,
)

import lightpeft
from lightpeft.adapters import find_modules
from lightpeft.errors import ConfigError
from lightpeft.run_config import LoraOptions, PeftOptions
from lightpeft.runs import MINILM, load_peft_model, minilm, resolve_model
from lightpeft.tasks import class_head

TINY = {"vocab_size": 40, "max_position_embeddings": 20}
LABELS = class_head(("no", "yes"))


def save_bert(folder: Path, **options: bool) -> str:
    config = BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, **TINY
    )
    BertModel(config, **options).save_pretrained(folder)
    return str(folder)


def test_all_six_linears_of_every_layer_are_targets_and_nothing_else(tmp_path: Path) -> None:
    model = load_peft_model(save_bert(tmp_path), LABELS, PeftOptions(lora=LoraOptions(rank=2)), seed=0)
    names = [module.name for module in find_modules(model)]
    assert len(names) == 12
    assert all(name.startswith("bert.encoder.layer.") for name in names)


def test_query_and_value_only(tmp_path: Path) -> None:
    model = load_peft_model(
        save_bert(tmp_path), LABELS, PeftOptions(lora=LoraOptions(targets="query-value")), seed=0
    )
    assert {module.name.rpartition(".")[2] for module in find_modules(model)} == {"query", "value"}


def test_unknown_targets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="choose all, query-value"):
        load_peft_model(save_bert(tmp_path), LABELS, PeftOptions(lora=LoraOptions(targets="some")), seed=0)


def test_heads_that_the_checkpoint_lacks_are_trained(tmp_path: Path) -> None:
    config = DistilBertConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=32, **TINY)
    DistilBertModel(config).save_pretrained(tmp_path)
    model = load_peft_model(str(tmp_path), LABELS, PeftOptions(), seed=0)
    trained = {name.split(".")[2] for name, p in model.named_parameters() if p.requires_grad}
    assert {"pre_classifier", "classifier"} <= trained


def test_a_pooler_that_the_checkpoint_lacks_is_trained(tmp_path: Path) -> None:
    with_pooler = load_peft_model(save_bert(tmp_path / "with"), LABELS, PeftOptions(), seed=0)
    name = save_bert(tmp_path / "without", add_pooling_layer=False)
    without = load_peft_model(name, LABELS, PeftOptions(), seed=0)
    for model, trained in ((with_pooler, False), (without, True)):
        pooler = [
            p.requires_grad for n, p in model.named_parameters() if "pooler" in n and "original" not in n
        ]
        assert any(pooler) is trained


def test_regression_has_one_output(tmp_path: Path) -> None:
    model = load_peft_model(
        save_bert(tmp_path), {"num_labels": 1, "problem_type": "regression"}, PeftOptions(), seed=0
    )
    assert model.config.num_labels == 1
    assert model.config.problem_type == "regression"


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    name = save_bert(tmp_path)
    states = [load_peft_model(name, LABELS, PeftOptions(), seed).state_dict() for seed in (3, 3, 4)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not all(torch.equal(states[0][key], states[2][key]) for key in states[0])


def test_an_unknown_architecture_is_refused_by_name(tmp_path: Path) -> None:
    MambaConfig(hidden_size=8, num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"cannot be loaded.*MambaConfig"):
        load_peft_model(str(tmp_path), LABELS, PeftOptions(), seed=0)


def test_an_architecture_without_a_row_is_looked_at_and_trained(tmp_path: Path) -> None:
    config = ErnieConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, **TINY
    )
    ErnieModel(config).save_pretrained(tmp_path)
    model = load_peft_model(str(tmp_path), LABELS, PeftOptions(lora=LoraOptions(rank=2)), seed=0)
    assert len(find_modules(model)) == 12
    assert [layer.heads for layer in lightpeft.find_anatomy(model).layers] == [2, 2]


def test_a_head_for_other_labels_starts_anew_and_comes_back(tmp_path: Path) -> None:
    config = BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, **TINY, num_labels=3
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path / "base")
    model = load_peft_model(
        str(tmp_path / "base"), LABELS, PeftOptions(lora=LoraOptions(rank=2)), seed=0
    ).eval()
    ids = torch.arange(5, 15)[None]
    scores = random_scores(model)
    lightpeft.cut(model, lightpeft.make_plan(scores, lightpeft.find_anatomy(model), lightpeft.Budget()))
    expected = model(input_ids=ids).logits
    assert expected.shape == (1, 2)
    loaded = lightpeft.load(lightpeft.save(model, tmp_path / "light"))
    assert torch.equal(loaded(input_ids=ids).logits, expected)


def test_weights_of_another_encoder_are_refused(tmp_path: Path) -> None:
    folder = Path(save_bert(tmp_path))
    config = BertConfig.from_pretrained(folder)
    config.intermediate_size = 48
    config.save_pretrained(folder)
    with pytest.raises(ConfigError, match=r"do not fit its configuration: bert\.encoder"):
        load_peft_model(str(folder), LABELS, PeftOptions(), seed=0)


def test_minilm_resolves_to_checked_weights(minilm_path: Path) -> None:
    assert resolve_model(MINILM) == str(minilm_path)
    assert resolve_model("roberta-large") == "roberta-large"


def test_other_weights_are_not_taken_for_minilm(
    minilm_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert minilm_path.is_dir()
    (tmp_path / "model.safetensors").write_bytes(b"something else")
    monkeypatch.setattr(minilm, "_from_package", lambda: tmp_path)
    with pytest.raises(ConfigError, match="SHA-256"):
        minilm.minilm_path()


def test_minilm_as_roberta_gives_the_same_hidden_states(minilm_path: Path) -> None:
    """The same weights through the RoBERTa path: position rows are shifted by the padding offset."""
    bert = BertModel.from_pretrained(minilm_path, add_pooling_layer=False).eval()
    config = RobertaConfig(**{**bert.config.to_dict(), "max_position_embeddings": 513, "pad_token_id": 0})
    roberta = RobertaModel(config, add_pooling_layer=False).eval()
    state = bert.state_dict()
    name = "embeddings.position_embeddings.weight"
    state[name] = torch.cat([torch.zeros(1, bert.config.hidden_size), state[name]])
    roberta.load_state_dict(state)
    ids = torch.randint(1000, 2000, (2, 9))
    with torch.no_grad():
        expected, found = (model(ids, torch.ones_like(ids))[0] for model in (bert, roberta))
    assert torch.allclose(expected, found, atol=1e-5)


@pytest.mark.parametrize(("with_pooler", "stored"), [(True, False), (False, True)])
def test_a_light_checkpoint_stores_a_pooler_only_if_the_base_lacks_it(
    with_pooler: bool, stored: bool, tmp_path: Path
) -> None:
    name = save_bert(tmp_path / "base", add_pooling_layer=with_pooler)
    model = load_peft_model(name, LABELS, PeftOptions(lora=LoraOptions(rank=2)), seed=0)
    batch = {"input_ids": torch.randint(5, 40, (2, 6)), "labels": torch.tensor([0, 1])}
    scores = lightpeft.estimate(model, [batch] * 2, lightpeft.EstimationConfig(steps=2))
    plan = lightpeft.make_plan(scores, lightpeft.find_anatomy(model), lightpeft.Budget())
    lightpeft.cut(model, plan, scores=scores)
    folder = lightpeft.save(model, tmp_path / "light")
    files = [folder / "light.safetensors", folder / "adapter_model.safetensors"]
    assert any("pooler" in key for file in files for key in load_file(file)) is stored
    loaded = lightpeft.load(folder)
    model.eval()
    inputs = {"input_ids": batch["input_ids"]}
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
