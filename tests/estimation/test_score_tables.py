"""A score is one row: a name, a function, and the statistics that are gathered for it."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tests.support.models import LAYERS, make_batch, tiny_peft
from tests.support.oracles import base_gradients
from tests.support.plans import lora_names

import lightpeft
from lightpeft import ConfigError, EstimationConfig, EstimationError, Scores
from lightpeft.estimation import Estimator
from lightpeft.score_tables import GRADIENT_STATISTICS, TABLES, Score

OPTIONS = {"base": "base_score", "module": "module_score", "rank": "rank_score", "layer": "layer_score"}


@pytest.fixture
def model(tmp_path: Path) -> PeftModel:
    return tiny_peft("bert", tmp_path)


def estimated(model: PeftModel, **options: Any) -> Scores:
    trained = [p for p in model.parameters() if p.requires_grad]
    batches = [make_batch("bert", labels=True, seed=i) for i in range(2)]
    config = EstimationConfig(steps=2, window="second_half", **options)
    return lightpeft.estimate(model, batches, config, optimizer=torch.optim.SGD(trained, lr=0.0))


OF_GATES = ["base", "module", "rank"]


@pytest.mark.parametrize("kind", TABLES)
def test_an_unknown_name_is_an_error_with_the_nearest_known(kind: str) -> None:
    known = "cosine" if kind == "layer" else "fisher"
    with pytest.raises(ConfigError, match=rf"{OPTIONS[kind]} is '{known}s'.*Did you mean '{known}'\?"):
        EstimationConfig(**{OPTIONS[kind]: f"{known}s"})


@pytest.mark.parametrize("kind", OF_GATES)
def test_a_new_row_is_all_that_a_new_score_needs(
    kind: str, model: PeftModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that needs a statistic that no other score needs."""
    monkeypatch.setitem(GRADIENT_STATISTICS, "size", torch.abs)
    row = Score("mean size", lambda known: known.means["size"], ("size",))
    monkeypatch.setitem(TABLES[kind], row.name, row)
    scores = estimated(model, **{OPTIONS[kind]: row.name})
    assert scores.methods[kind] == row.name
    if kind == "base":
        heads, neurons = base_gradients(model, make_batch("bert", labels=True, seed=1))
        for layer in range(LAYERS):
            torch.testing.assert_close(scores.heads[layer], heads[layer].abs(), rtol=1e-4, atol=1e-7)
            torch.testing.assert_close(scores.neurons[layer], neurons[layer].abs(), rtol=1e-4, atol=1e-7)
    else:  # over one step Taylor is the same number
        taylor = estimated(model, module_score="taylor", rank_score="taylor")
        assert scores.modules == pytest.approx(taylor.modules) or kind == "rank"
        for name in lora_names(model) if kind == "rank" else ():
            torch.testing.assert_close(scores.ranks[name], taylor.ranks[name])


@pytest.mark.parametrize("kind", OF_GATES)
def test_only_what_the_rows_need_is_gathered(kind: str, model: PeftModel) -> None:
    for name, row in TABLES[kind].items():
        estimator = Estimator(model, EstimationConfig(**{OPTIONS[kind]: name}))
        gathered = estimator.state()[0].keys()
        kinds = {"base": "base", "module": "modules", "rank": "ranks"}
        own = {key for key in gathered if key.startswith(f"{kinds[kind]}.")}
        assert own == {f"{kinds[kind]}.{statistic}" for statistic in row.gradients}
        if kind == "module":
            assert ("share_sum" in gathered) == ("share" in row.statistics)


def test_the_score_of_a_layer_is_the_sum_of_its_units_or_what_it_changes(model: PeftModel) -> None:
    scores = estimated(model)
    for index, (heads, neurons) in enumerate(zip(scores.heads, scores.neurons, strict=True)):
        assert scores.layers[index] == pytest.approx(float(heads.sum() + neurons.sum()), rel=1e-5)
        assert scores.layer_losses()[index] == pytest.approx(scores.layers[index], rel=1e-5)
    batch = make_batch("bert", labels=True, seed=1)  # the second half of two steps is the second
    cosine = estimated(model, layer_score="cosine")
    model.eval()
    states = model(**batch, output_hidden_states=True).hidden_states
    real = batch["attention_mask"].bool()
    for index in range(LAYERS):
        before, after = states[index][real], states[index + 1][real]
        expected = 1 - torch.cosine_similarity(before, after, dim=-1).mean().item()
        assert cosine.layers[index] == pytest.approx(expected, rel=1e-4)
    assert math.fsum(cosine.layer_losses()) == pytest.approx(math.fsum(scores.layer_losses()), rel=1e-5)
    shares = [loss / score for loss, score in zip(cosine.layer_losses(), cosine.layers, strict=True)]
    assert shares == pytest.approx([shares[0]] * LAYERS)


def test_scores_without_gradients_put_no_gates_in(model: PeftModel) -> None:
    base = model.get_base_model()

    def gates(**options: Any) -> int:
        estimator = Estimator(model, EstimationConfig(**options))
        estimator.attach()
        hooks = sum(len(module._forward_pre_hooks) for module in base.modules())
        estimator.detach()
        return hooks

    linears, readers = 2 * LAYERS, 2 * LAYERS  # a gate also hooks the LoRA pair that reads its linear's input
    assert gates(base_score="fisher") - gates(base_score="random") == linears + readers


def test_a_statistic_that_nobody_gathers_is_an_error_where_the_row_is_made() -> None:
    with pytest.raises(ConfigError, match=r"needs the statistic 'squares'. Did you mean 'square'\?"):
        Score("mine", lambda known: known.means["squares"], ("squares",))


def test_a_function_with_the_wrong_number_of_values_is_an_error(
    model: PeftModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = Score("mine", lambda units: units.means["square"].sum(), ("square",))
    monkeypatch.setitem(TABLES["base"], "mine", row)
    with pytest.raises(EstimationError, match=re.escape("score 'mine' gave values of shape ()")):
        estimated(model, base_score="mine")


def test_every_row_says_what_it_is_in_the_help() -> None:
    """The text under an option is its help: no score may be missing there."""
    source = Path(lightpeft.config.__file__).read_text()
    for kind, table in TABLES.items():
        text = re.search(rf"    {OPTIONS[kind]}: str = .*?\n    \"\"\"(.*?)\"\"\"", source, re.DOTALL)
        assert text is not None
        assert all(f"`{name}`" in text[1] for name in table)
