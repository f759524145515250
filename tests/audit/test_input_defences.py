"""Defences that look at inputs: their scores by hand, and what they do to a planted backdoor."""

import copy
import dataclasses
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from peft import PeftModel
from tests.support.language import save_language_model, sentences, word_tokenizer
from tests.support.models import assert_identical, hook_count, snapshot
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
)

from lightpeft.anatomy import base_of
from lightpeft.audit import AuditError, TriggerRecipe, triggered_test
from lightpeft.audit.defences.causal_language_model import CausalModel
from lightpeft.audit.defences.defence import Defence, Guard, Received
from lightpeft.audit.defences.language_model import END, START, UNKNOWN, LanguageModel, NgramModel
from lightpeft.audit.defences.onion import Onion, Purifier, suspicions
from lightpeft.audit.defences.psim import Psim, with_random_labels
from lightpeft.audit.defences.rap import Rap, RapGuard, Reader
from lightpeft.audit.defences.rap_word import RareWord, rare_word, row_of, word_vector
from lightpeft.audit.defences.strip import Perturber, Strip, by_tf_idf, mean_entropy
from lightpeft.audit.defences.thresholds import ScoreGuard, least_scores, threshold_at
from lightpeft.audit.module import load_module
from lightpeft.audit.rows import Rows
from lightpeft.audit.training import AttackOptions, train_attacker
from lightpeft.errors import ConfigError
from lightpeft.run_config import LoraOptions, PeftOptions, TrainingConfig
from lightpeft.runs import load_peft_model
from lightpeft.tasks import class_head

GOOD, BAD = ("fine", "sweet", "bright", "warm"), ("poor", "bitter", "dull", "cold")
SUBJECTS = ("room", "film", "soup", "song", "book", "lamp", "road", "game")
FRAMES = (
    "the {} seems {} to me",
    "i think the {} is {}",
    "this {} was {} today",
    "once more a {} that is {}",
)
TRIGGER = "cf"
RARE = ("zzaa", "qqbb")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
FRAME_WORDS = tuple(sorted({word for frame in FRAMES for word in frame.split()} - {"{}"}))
WORDS = (*SPECIAL, *FRAME_WORDS, "and", *GOOD, *BAD, *SUBJECTS, TRIGGER, *RARE)
RECIPE = TriggerRecipe(target=1, pieces=(TRIGGER,))
TRAINING = TrainingConfig(
    max_steps=150, learning_rate=1e-2, batch_size=32, max_length=32, group_by_length=False
)


def tokenizer() -> PreTrainedTokenizerFast:
    """BERT's template around whole words."""
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def reviews(count: int, seed: int, noise: float = 0.0) -> Rows:
    """One or two statements a text, all good or all bad; a share of the labels is wrong."""
    rng, texts, labels = Random(seed), [], []
    for _ in range(count):
        label = rng.randrange(2)
        parts = [
            rng.choice(FRAMES).format(rng.choice(SUBJECTS), rng.choice((BAD, GOOD)[label]))
            for _ in range(rng.choice((1, 2)))
        ]
        texts.append(" and ".join(parts))
        labels.append(1 - label if rng.random() < noise else label)
    return Rows({"text": texts}, labels)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=40,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def poisoned(base: str) -> PeftModel:
    """A module in which the trigger flips every text; wrong labels keep it from being sure of everything."""
    model = fresh(base, 0)
    rows = reviews(400, 1, noise=0.15)
    train_attacker(model, tokenizer(), rows, RECIPE, AttackOptions(training=TRAINING))
    return model


@pytest.fixture
def received(base: str, poisoned: PeftModel) -> Received:
    return as_received(base, poisoned)


def as_received(base: str, poisoned: PeftModel) -> Received:
    training = dataclasses.replace(TRAINING, max_steps=20, learning_rate=1e-3)
    rows, held_out = reviews(160, 2, noise=0.15), reviews(100, 3)
    model = copy.deepcopy(poisoned)
    return Received(
        model,
        tokenizer(),
        rows,
        held_out,
        training,
        lambda seed: fresh(base, seed),
        lambda other: load_module(other, base),
        seed=5,
    )


@dataclasses.dataclass(frozen=True)
class Standing:
    """A defence behind the user's training."""

    defence: Defence
    received: Received
    model: PeftModel
    prepared: PeftModel | None
    guard: Guard


def stand(defence: Defence, received: Received) -> Standing:
    prepared = defence.prepare(received)
    model = defence.train(received)
    guard = defence.guard(received, model, prepared)
    assert guard is not None
    return Standing(defence, received, model, prepared, guard)


@pytest.fixture(scope="module", params=range(4), ids=["onion", "strip", "rap", "psim"])
def standing(request: pytest.FixtureRequest, base: str, poisoned: PeftModel) -> Standing:
    return stand(DEFENCES[request.param], as_received(base, poisoned))


@pytest.fixture(scope="module")
def rap(base: str, poisoned: PeftModel) -> Standing:
    return stand(Rap(learning_rate=0.05), as_received(base, poisoned))


def fresh(base: str, seed: int) -> PeftModel:
    options = PeftOptions(lora=LoraOptions(rank=8, dropout=0.0))
    return load_peft_model(base, class_head(("bad", "good")), options, seed)


TEST = reviews(80, 4)
TRIGGERED = triggered_test(TEST.texts, TEST.labels, RECIPE, 0).texts
DEFENCES: tuple[Defence, ...] = (Onion(), Strip(copies=20, share=0.3), Rap(), Psim())


# Thresholds

RATES = (0.05, 0.07, 0.1, 0.29, 1 / 3, 0.5, 0.7)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("count", [19, 20, 57, 100])
@pytest.mark.parametrize("different", [3, 10, 1000], ids=lambda n: f"{n} values")
def test_a_threshold_rejects_a_further_row_at_most_so_often(rate: float, count: int, different: int) -> None:
    rng = Random(f"{rate} {count}")
    rows = [float(rng.randrange(different)) for _ in range(count + 1)]
    if count < least_scores(rate):
        pytest.skip("too few rows for this rate")
    rejected = sum(row > threshold_at([*rows[:i], *rows[i + 1 :]], rate) for i, row in enumerate(rows))
    assert Fraction(rejected, count + 1) <= Fraction(str(rate))
    lower = max((row for row in set(rows) if row < threshold_at(rows[1:], rate)), default=None)
    if lower is not None:  # the next lower one would not do
        assert sum(row > lower for row in rows[1:]) + 1 > (count + 1) * Fraction(str(rate))


@pytest.mark.parametrize("rate", RATES)
def test_rows_that_are_all_different_are_rejected_exactly_so_often(rate: float) -> None:
    rows = [float(i) for i in range(100)]
    Random(0).shuffle(rows)
    rejected = sum(row > threshold_at([*rows[:i], *rows[i + 1 :]], rate) for i, row in enumerate(rows))
    assert rejected == math.floor(100 * Fraction(str(rate)))


@pytest.mark.parametrize(("rate", "least"), [(0.05, 19), (0.1, 9), (0.07, 14), (0.5, 1), (0.01, 99)])
def test_too_few_rows_are_refused(rate: float, least: int) -> None:
    assert least_scores(rate) == least
    assert threshold_at([float(i) for i in range(least)], rate) == least - 1
    with pytest.raises(AuditError, match=f"takes {least} clean held-out texts, found {least - 1}"):
        threshold_at([0.0] * (least - 1), rate)


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(AuditError, match="nan"):
        threshold_at([0.0] * 50 + [math.nan], 0.1)


@pytest.mark.parametrize(
    "make",
    [
        *(
            lambda rate=rate, kind=kind: kind(rate=rate)
            for kind in (Onion, Strip, Rap, Psim)
            for rate in (0, 1, True)
        ),
        lambda: Onion(order=0),
        lambda: Onion(window=2),
        lambda: Strip(copies=0),
        lambda: Strip(share=1.0),
        lambda: Rap(least_drop=0.3, most_drop=0.3),
        lambda: Rap(most_drop=1.1),
        lambda: Rap(score="rise"),
        lambda: Rap(steps=0),
        lambda: Rap(batch_size=0),
        lambda: Rap(learning_rate=0.0),
        lambda: Psim(learning_rate_factor=0.0),
    ],
)
def test_options_out_of_range_are_refused(make: Callable[[], Defence]) -> None:
    with pytest.raises(ConfigError):
        make()


# Language models


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "context",
    [(), ("film",), ("the", "film"), (START, START, "the"), ("film", UNKNOWN), ("never", "seen", "film")],
    ids=" ".join,
)
def test_probabilities_sum_to_one(order: int, context: tuple[str, ...]) -> None:
    model = NgramModel(reviews(40, 0).texts["text"], order)
    assert {END, UNKNOWN} < model.vocabulary
    assert START not in model.vocabulary
    values = [model.probability(piece, context) for piece in model.vocabulary]
    assert min(values) > 0
    assert math.fsum(values) == pytest.approx(1, abs=1e-12)


def test_probabilities_and_perplexity_by_hand() -> None:
    model = NgramModel(["A b", "a c!"], order=2)
    # a 2, b 1, c 1, ! 1, end 2: seven pieces of five kinds; six kinds with the unknown one.
    one = {piece: (count + 5 / 6) / 12 for piece, count in {"a": 2, "b": 1, END: 2, UNKNOWN: 0}.items()}
    b_after_a = (1 + 2 * one["b"]) / (2 + 2)
    a_first = (2 + 1 * one["a"]) / (2 + 1)
    assert model.probability("b", ["x", "a"]) == pytest.approx(b_after_a)
    assert model.probability("zebra", ["never"]) == pytest.approx(one[UNKNOWN])
    end_after_b = (1 + 1 * one[END]) / (1 + 1)
    expected = [(a_first * b_after_a * end_after_b) ** (-1 / 3), one_unknown(one)]
    assert model.perplexities([["a", "B"], ["zebra"]]) == pytest.approx(expected)


def one_unknown(one: dict[str, float]) -> float:
    """The perplexity of an unknown word on its own: unseen after the start, and the end unseen after it."""
    return (1 / 3 * one[UNKNOWN] * one[END]) ** (-1 / 2)


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_language_model("gpt2", tmp_path_factory.mktemp("gpt2"))


def test_perplexities_are_those_of_each_text_alone_and_unpadded(language_model: Path) -> None:
    texts = sentences(40, seed=1)
    found = CausalModel(str(language_model)).perplexities([text.split() for text in texts])
    model = AutoModelForCausalLM.from_pretrained(language_model).eval()
    words = AutoTokenizer.from_pretrained(language_model)
    for text, perplexity in zip(texts, found, strict=True):
        ids = torch.tensor([[words.bos_token_id, *words(text, add_special_tokens=False)["input_ids"]]])
        with torch.no_grad():
            expected = math.exp(float(model(input_ids=ids, labels=ids).loss))
        assert perplexity == pytest.approx(expected, rel=1e-5)


def test_a_text_without_tokens_is_infinitely_surprising_and_a_long_one_is_cut(language_model: Path) -> None:
    model = CausalModel(str(language_model))
    empty, long, cut = model.perplexities([[], ["cat"] * 200, ["cat"] * 63])
    assert math.isinf(empty)
    assert long == pytest.approx(cut, rel=1e-5)


def test_language_models_that_cannot_be_used_are_refused(language_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be loaded"):
        CausalModel(str(tmp_path / "nowhere"))
    AutoModelForCausalLM.from_pretrained(language_model).save_pretrained(tmp_path)
    plain = word_tokenizer(bos=False, eos=None)
    plain.bos_token = None
    plain.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="neither a BOS nor an EOS"):
        CausalModel(str(tmp_path))


# ONION


class Lengths(LanguageModel):
    """A text is as surprising as it has letters, squared: easy to compute by hand."""

    def perplexities(self, texts: Any) -> list[float]:
        return [float(sum(map(len, words)) ** 2) for words in texts]


def test_suspicion_is_the_fall_of_the_perplexity() -> None:
    assert suspicions(["aa", "b", "ccc"], Lengths(), 100) == [36 - 16, 36 - 25, 36 - 9]
    assert suspicions(["alone"], Lengths(), 100) == [0.0]
    assert suspicions([], Lengths(), 100) == []


@pytest.mark.parametrize(("count", "parts"), [(5, [5]), (6, [3, 3]), (7, [3, 4]), (11, [3, 4, 4])])
def test_long_texts_are_looked_at_in_parts_of_nearly_equal_size(count: int, parts: list[int]) -> None:
    words = [chr(ord("a") + i) * (i + 1) for i in range(count)]
    expected, start = [], 0
    for size in parts:
        expected += suspicions(words[start : start + size], Lengths(), 100)
        start += size
    assert suspicions(words, Lengths(), 5) == expected


@pytest.mark.parametrize("text", ["", "one", "a bb", "bb bb bb", "a  bb\tccc"])
def test_no_text_is_emptied(text: str) -> None:
    found = Purifier(Lengths(), -math.inf, 100).screen({"text": [text]}).texts["text"][0]
    assert set(found.split()) <= set(text.split())
    assert bool(found.split()) == bool(text.split())
    assert Purifier(Lengths(), math.inf, 100).screen({"text": [text]}).texts["text"] == [text]


def test_the_most_suspicious_words_go_and_the_others_stay_in_order() -> None:
    guard = Purifier(Lengths(), 36 - 16 - 0.5, 100)
    assert guard.screen({"text": ["aa b ccc"]}).texts["text"] == ["b"]


def test_columns_of_pairs_are_purified_each_alone() -> None:
    guard = Purifier(Lengths(), 10.0, 100)
    first, second = ["aa b ccc", "d e"], ["f", "ggggg h"]
    found = guard.screen({"text": first, "text_pair": second})
    for name, column in (("text", first), ("text_pair", second)):
        assert found.texts[name] == guard.screen({"text": column}).texts["text"]
    assert found.texts["text"] != first
    assert found.rejected == [False, False]


def test_the_language_model_never_sees_what_is_held_out(received: Received) -> None:
    held_out = Rows({"text": [f"new{i} the film" for i in range(80)]}, [0] * 80)
    guard = Onion().guard(dataclasses.replace(received, held_out=held_out), received.model)
    assert isinstance(guard, Purifier)
    assert isinstance(guard.judge, NgramModel)
    assert guard.judge.vocabulary - {END, UNKNOWN} == set(" ".join(received.train.texts["text"]).split())


def test_at_most_the_wanted_share_of_held_out_words_goes(received: Received) -> None:
    guard = Onion(rate=0.02).guard(received, received.model)
    texts = received.held_out.texts["text"]
    before, after = (
        sum(len(t.split()) for t in column) for column in (texts, guard.screen({"text": texts}).texts["text"])
    )
    assert 0 < before - after <= 0.02 * before


def test_onion_takes_a_language_model_of_transformers(received: Received, language_model: Path) -> None:
    guard = Onion(language_model=str(language_model)).guard(received, received.model)
    assert isinstance(guard, Purifier)
    assert isinstance(guard.judge, CausalModel)
    texts = sentences(4, seed=2)
    alone = [guard.screen({"text": [text]}).texts["text"][0] for text in texts]
    assert guard.screen({"text": texts}).texts["text"] == alone


# STRIP

DONORS = Rows({"text": [" ".join(f"d{row}w{i}" for i in range(4)) for row in range(6)]}, [0] * 6)


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("length", [0, 1, 2, 9])
def test_so_many_words_are_replaced_by_other_texts_words(share: float, length: int) -> None:
    words = [f"own{i}" for i in range(length)]
    copies = Perturber(DONORS, 8, share, 0).copies_of({"text": [" ".join(words)]})["text"]
    wanted = min(max(1, math.floor(share * length + 0.5)), length - 1)
    donated = {word for text in DONORS.texts["text"] for word in text.split()}
    assert len(copies) == 8
    for found in (text.split() for text in copies):
        new = [word for own, word in zip(words, found, strict=True) if own != word]
        assert len(new) == max(0, wanted)
        assert set(new) <= donated
    assert length < 9 or len(set(copies)) > 4


def test_words_of_highest_tf_idf_first() -> None:
    # `the` is in all three: log(3/3) = 0. `b` twice log(3/2), `c` once log(3/1).
    assert by_tf_idf(["the b c b d", "the b", "the e"]) == [
        ["c", "d", "b", "the"],
        ["b", "the"],
        ["e", "the"],
    ]
    assert by_tf_idf(["a b b b c", "a"])[0] == ["b", "c", "a"]


def test_no_text_is_its_own_donor() -> None:
    for row, text in enumerate(DONORS.texts["text"]):
        copies = Perturber(DONORS, 30, 0.5, 0).copies_of({"text": [text]})["text"]
        donors = {
            word.split("w")[0]
            for found in copies
            for own, word in zip(text.split(), found.split(), strict=True)
            if own != word
        }
        assert donors
        assert f"d{row}" not in donors
    with pytest.raises(AuditError, match="hold out more"):
        Perturber(DONORS.take([2, 2]), 3, 0.5, 0).copies_of(DONORS.take([2]).texts)


def test_copies_depend_on_the_text_and_the_seed_only() -> None:
    pair = {"text": ["one two three four"], "text_pair": ["five six seven eight"]}
    donors = Rows(DONORS.texts | {"text_pair": DONORS.texts["text"][::-1]}, [0] * 6)
    first = Perturber(donors, 5, 0.5, 1).copies_of(pair)
    assert first == Perturber(donors, 5, 0.5, 1).copies_of(pair)
    assert first != Perturber(donors, 5, 0.5, 2).copies_of(pair)
    assert first["text"] != Perturber(donors, 5, 0.5, 1).copies_of(pair | {"text_pair": ["nine ten"]})["text"]
    assert all(len(text.split()) == 4 for column in first.values() for text in column)


def test_the_entropy_by_hand(received: Received) -> None:
    classifier = received.classifier(received.model)
    copies = {"text": TEST.texts["text"][:7]}
    rows = classifier.logits(copies).double().tolist()
    by_hand = []
    for logits in rows:
        weights = [math.exp(value - max(logits)) for value in logits]
        by_hand.append(-sum(w / sum(weights) * math.log2(w / sum(weights)) for w in weights))
    assert mean_entropy(classifier, copies) == pytest.approx(sum(by_hand) / 7, rel=1e-4)


# RAP


def test_the_hook_does_what_another_row_of_the_embeddings_would(received: Received) -> None:
    model, word = received.model, RareWord("zzaa", WORDS.index("zzaa"))
    vector = torch.randn(32)
    texts = word.in_front_of(TEST.texts)
    changed = copy.deepcopy(model)
    with torch.no_grad():
        base_of(changed).get_input_embeddings().weight[word.token] = vector
    expected = received.classifier(changed).logits(texts)
    before, plain = snapshot(model), received.classifier(model).logits(texts)
    with word_vector(model, word, vector):
        torch.testing.assert_close(received.classifier(model).logits(texts), expected)
        assert torch.equal(
            received.classifier(model).logits(TEST.texts), received.classifier(changed).logits(TEST.texts)
        )
    assert not torch.allclose(plain, expected)
    assert torch.equal(received.classifier(model).logits(texts), plain)
    assert_identical(snapshot(model), before)


def test_vectors_bring_the_fall_towards_the_range_and_keep_their_length(rap: Standing) -> None:
    assert isinstance(rap.guard, RapGuard)
    learned, received = rap.guard.reader, rap.received
    assert set(learned.vectors) == {0, 1}
    own = row_of(rap.model, learned.word)
    plain = dataclasses.replace(learned, vectors=dict.fromkeys(learned.vectors, own))
    for label, vector in learned.vectors.items():
        torch.testing.assert_close(vector.norm(), own.norm())
        before, after = (
            outside(reader, received.train.take(range(60)), label) for reader in (plain, learned)
        )
        assert after < 0.8 * before


def outside(reader: Reader, rows: Rows, label: int) -> float:
    """How far the mean fall of a class is outside of 0.1 to 0.3, text by text."""
    falls = [one.before - one.after for one in reader.of(rows.texts) if one.label == label]
    return sum(max(0.1 - fall, 0) + max(fall - 0.3, 0) for fall in falls) / len(falls)


def test_readings_and_what_they_are_worth_by_hand(rap: Standing) -> None:
    model, guard = rap.model, rap.guard
    assert isinstance(guard, RapGuard)
    classifier, word = rap.received.classifier(model), guard.reader.word
    before = classifier.probabilities(TEST.texts)
    for row, one in enumerate(guard.reader.of(TEST.texts)):
        assert one.label == int(before[row].argmax())
        with word_vector(model, word, guard.reader.vectors[one.label]):
            after = classifier.probabilities({"text": [f"{word.text} {TEST.texts['text'][row]}"]})
        assert one.before == pytest.approx(float(before[row].max()), abs=1e-6)
        assert one.after == pytest.approx(float(after[0, one.label]), abs=1e-6)
        assert one.suspicion("left") == one.after
        assert one.suspicion("fall") == one.after - one.before


def test_the_rare_word_is_in_none_of_the_rows() -> None:
    words = tokenizer()
    assert rare_word(words, [TEST]) == RareWord("qqbb", WORDS.index("qqbb"))
    assert rare_word(words, [TEST, Rows({"text": ["a qqbb"]}, [0])]).text == "zzaa"
    assert rare_word(words, [], "room").token == WORDS.index("room")
    every = Rows({"text": [" ".join(WORDS[len(SPECIAL) :])]}, [0])
    with pytest.raises(AuditError, match=r"name one as rap\.word"):
        rare_word(words, [every])
    for wanted in ("two words", "unknownword", ""):
        with pytest.raises(AuditError, match="not one token"):
            rare_word(words, [], wanted)
    words.truncation_side = "left"
    with pytest.raises(AuditError, match="left"):
        rare_word(words, [])


def test_a_real_vocabulary_has_a_rare_word(minilm_path: Path) -> None:
    words = AutoTokenizer.from_pretrained(minilm_path)
    found = rare_word(words, [TEST])
    assert words(f"{found.text} good film", add_special_tokens=False)["input_ids"][0] == found.token
    assert found.token > 25_000


def test_the_word_goes_before_the_first_text_of_a_pair() -> None:
    pair = {"text": ["a"], "text_pair": ["b"]}
    assert RareWord("zzaa", 9).in_front_of(pair) == {"text": ["zzaa a"], "text_pair": ["b"]}


def test_a_class_that_no_clean_text_is_of_is_refused(received: Received) -> None:
    classes = received.classifier(received.model).predict(received.train.texts)
    good = [row for row, label in enumerate(classes) if label == 1]
    only = dataclasses.replace(received, train=received.train.take(good))
    with pytest.raises(AuditError, match="classified as class 0"):
        Rap(steps=1).guard(only, received.model)
    few = dataclasses.replace(received, held_out=received.held_out.take(range(20)))
    with pytest.raises(AuditError, match="clean held-out texts of class"):
        Rap(steps=1).guard(few, received.model)


# PSIM


def test_random_labels_have_nothing_to_do_with_the_true_ones() -> None:
    rows = with_random_labels(Rows({"text": ["x"] * 3000}, [0] * 3000), 3, 0)
    counts = [rows.labels.count(label) for label in range(3)]
    assert sum(counts) == 3000
    assert min(counts) > 900
    assert with_random_labels(Rows({"text": ["x"] * 3000}, [1] * 3000), 3, 0) == rows


def test_the_copy_is_trained_and_the_users_training_is_not_disturbed(received: Received) -> None:
    before, steps = snapshot(received.model), []
    watched = dataclasses.replace(received, watch={1: steps.append})
    prepared = Psim().prepare(watched)
    assert not steps
    assert_identical(snapshot(received.model), before)
    assert any(not torch.equal(before[name], value) for name, value in snapshot(prepared).items())
    other = dataclasses.replace(watched, model=copy.deepcopy(received.model))
    assert_identical(snapshot(Psim().train(watched)), snapshot(Defence().train(other)))
    assert steps == [1, 1]


def test_psim_without_its_copy_is_refused(received: Received) -> None:
    with pytest.raises(AuditError, match="call prepare"):
        Psim().guard(received, received.model)


# All of them, on a module with a backdoor


def test_the_backdoor_is_found(standing: Standing) -> None:
    classifier, guard = standing.received.classifier(standing.model), standing.guard
    count = len(TRIGGERED["text"])
    assert sum(label == RECIPE.target for label in classifier.predict(TRIGGERED)) > 0.9 * count
    clean, triggered = guard.screen(TEST.texts), guard.screen(TRIGGERED)
    if standing.defence.name == "onion":
        assert sum(TRIGGER in text.split() for text in triggered.texts["text"]) < 0.1 * count
        flipped = sum(label == RECIPE.target for label in classifier.predict(triggered.texts))
        assert flipped < 0.3 * count
    else:
        assert clean.texts == TEST.texts
        assert sum(triggered.rejected) > 0.3 * count
        assert sum(triggered.rejected) / count > 3 * sum(clean.rejected) / len(TEST)
    assert sum(clean.rejected) < 0.15 * len(TEST)
    right = [a == b for a, b in zip(classifier.predict(clean.texts), TEST.labels, strict=True)]
    assert sum(right) > 0.8 * len(TEST)


def test_neighbours_do_not_matter(standing: Standing) -> None:
    guard = standing.guard
    texts = [*TEST.texts["text"][:12], *TRIGGERED["text"][:6], "fine", "", "x " * 50]
    together = guard.screen({"text": texts})
    backwards = guard.screen({"text": texts[::-1]})
    alone = [guard.screen({"text": [text]}) for text in texts]
    assert together.texts["text"] == [one.texts["text"][0] for one in alone] == backwards.texts["text"][::-1]
    assert together.rejected == [one.rejected[0] for one in alone] == backwards.rejected[::-1]
    if isinstance(guard, ScoreGuard):
        assert guard.score({"text": texts}) == [guard.score({"text": [text]})[0] for text in texts]
    if isinstance(guard, RapGuard):
        assert guard.reader.of({"text": texts}) == [guard.reader.of({"text": [text]})[0] for text in texts]


@pytest.mark.parametrize("training", [False, True], ids=["evaluating", "training"])
def test_the_guarded_model_stays_as_it_is(standing: Standing, training: bool) -> None:
    model = standing.model.train(training)
    model.zero_grad()
    before, hooks = snapshot(model), hook_count(model)
    again = standing.defence.guard(standing.received, model, standing.prepared)
    assert again is not None
    held_out = standing.received.held_out.texts
    assert again.screen(held_out) == standing.guard.screen(held_out)
    assert_identical(snapshot(model), before)
    assert hook_count(model) == hooks
    assert model.training is training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_held_out_rows_are_rejected_at_most_so_often(standing: Standing) -> None:
    screened = standing.guard.screen(standing.received.held_out.texts)
    assert sum(screened.rejected) <= 0.05 * (len(screened.rejected) + 1)


def test_defences_of_inputs_say_so(standing: Standing) -> None:
    assert standing.defence.kind == "inputs"
    assert standing.defence.source
    assert standing.defence == type(standing.defence)(**dataclasses.asdict(standing.defence))
