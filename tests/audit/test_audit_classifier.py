"""Texts in, classes out: neither neighbours nor padding nor the model's mode make a difference."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tests.support.audit_runs import save_tiny_base
from tests.support.models import load_base, with_lora
from transformers import DataCollatorWithPadding

from lightpeft.audit.classifier import Classifier
from lightpeft.audit.rows import Rows, Texts
from lightpeft.run_config import TrainingConfig
from lightpeft.runs import load_tokenizer
from lightpeft.tasks import encode

SINGLE = {
    "text": ["the film was fine", "grim", "the soup was warm and the bread was dull dull", "the plot", ""]
}
PAIRS = SINGLE | {"text_pair": ["grim", "the table was lovely great", "cook", "the scene was poor", "fine"]}
TEXTS = {"single": SINGLE, "pairs": PAIRS}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base"), dropout=0.2)


@pytest.fixture(scope="module")
def model(base: Path) -> PeftModel:
    return with_lora(load_base(base))


def classifier(base: Path, model: PeftModel, batch_size: int = 64, max_length: int = 16) -> Classifier:
    return Classifier(model, load_tokenizer(str(base)), max_length, batch_size)


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_a_text_alone_is_as_in_a_batch(kind: str, batch_size: int, base: Path, model: PeftModel) -> None:
    texts = TEXTS[kind]
    one, several = classifier(base, model, 1), classifier(base, model, batch_size)
    alone = [
        {name: column[row : row + 1] for name, column in texts.items()} for row in range(len(SINGLE["text"]))
    ]
    for read in (Classifier.logits, Classifier.first_states):
        torch.testing.assert_close(
            read(several, texts), torch.cat([read(one, row) for row in alone]), rtol=0, atol=1e-5
        )
    assert several.predict(texts) == [label for row in alone for label in one.predict(row)]


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("max_length", [8, 16])
def test_texts_are_encoded_as_in_training(kind: str, max_length: int, base: Path, model: PeftModel) -> None:
    texts: Texts = TEXTS[kind]
    tokenizer = load_tokenizer(str(base))
    rows = Rows({name: list(column) for name, column in texts.items()}, [0] * 5)
    batch = DataCollatorWithPadding(tokenizer)(list(encode(rows.dataset(), tokenizer, max_length)))
    model.eval()
    with torch.no_grad():
        expected = model(**batch).logits
    found = classifier(base, model, max_length=max_length).logits(texts)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_first_states_are_the_first_token_of_the_last_layer(base: Path, model: PeftModel) -> None:
    batch = load_tokenizer(str(base))(SINGLE["text"], padding=True, return_tensors="pt")
    model.eval()
    with torch.no_grad():
        expected = model(**batch, output_hidden_states=True).hidden_states[-1][:, 0]
    found = classifier(base, model).first_states(SINGLE)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_left_as_it_was_found(training: bool, base: Path, model: PeftModel) -> None:
    model.train(training)
    first, second = (classifier(base, model).logits(SINGLE) for _ in range(2))
    assert torch.equal(first, second)
    assert {module.training for module in model.modules()} == {training}
    with pytest.raises(IndexError):
        classifier(base, model).logits({"text": ["the"], "text_pair": []})
    assert {module.training for module in model.modules()} == {training}


def test_probabilities_are_the_softmax_and_classes_their_highest(base: Path, model: PeftModel) -> None:
    found = classifier(base, model)
    probabilities = found.probabilities(SINGLE)
    assert probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities.sum(1), torch.ones(5))
    torch.testing.assert_close(probabilities.log().diff(), found.logits(SINGLE).diff(), rtol=0, atol=1e-4)
    assert found.predict(SINGLE) == probabilities.argmax(1).tolist()


def test_length_and_precision_are_the_trainings(base: Path, model: PeftModel) -> None:
    tokenizer = load_tokenizer(str(base))
    plain = Classifier.under(model, tokenizer, TrainingConfig(max_length=7))
    half = Classifier.under(model, tokenizer, TrainingConfig(max_length=7, precision="bfloat16"))
    assert plain.max_length == half.max_length == 7
    logits, rough = plain.logits(SINGLE), half.logits(SINGLE)
    assert rough.dtype == torch.float32
    assert not torch.equal(logits, rough)
    torch.testing.assert_close(rough, logits, rtol=0.1, atol=0.1)
