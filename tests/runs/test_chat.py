"""Conversations: which tokens are learned, what is refused, and a whole run that answers."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from tests.support.language import VOCABULARY, save_language_model, word_tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lightpeft.cli.main import main
from lightpeft.run_config import TrainingConfig
from lightpeft.tasks import TaskError, custom_task, find_kind, load_task

KIND = find_kind("chat")
OWN = custom_task(("messages",), objective="chat")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}the {{ m.content }} "
    "{% elif m.role == 'assistant' %}sees {{ m.content }} </s> {% else %}{{ m.content }} {% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}sees{% endif %}"
)
FORGETFUL = TEMPLATE.replace("{{ m.content }} </s>", "{{ m.content if loop.last else 'a' }} </s>")


def said(*texts: str, system: str | None = None) -> list[dict[str, str]]:
    """A conversation in turns."""
    first = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return first + [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]


def tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerBase:
    found = word_tokenizer()
    found.chat_template = template
    return found


def encoded(*conversations: list[dict[str, str]], length: int = 32, packing: bool = False) -> Dataset:
    split = Dataset.from_dict({"messages": list(conversations)})
    return KIND.features(split, tokenizer(), TrainingConfig(max_length=length, packing=packing))


def words(ids: list[int]) -> str:
    names = {number: word for word, number in VOCABULARY.items()}
    return " ".join("_" if token == -100 else names[token] for token in ids)


def test_what_the_assistant_says_is_learned_to_the_end_of_its_turn() -> None:
    row = encoded(said("cat", "a dog", "red bird", "old", system="small"))[0]
    assert words(row["input_ids"]) == "<s> small the cat sees a dog </s> the red bird sees old </s>"
    assert words(row["labels"]) == "_ _ _ _ _ a dog </s> _ _ _ _ old </s>"


def test_conversations_are_packed_and_cut_like_texts() -> None:
    packed = encoded(said("cat", "a dog"), said("bird", "tree"), length=4, packing=True)
    assert words(packed["input_ids"][0]) == "a dog </s> <s>"  # the row before has nothing to learn
    cut = encoded(said("small old cat", "a dog"), length=6)[0]
    assert words(cut["input_ids"]) == "<s> cat sees a dog </s>"
    assert words(cut["labels"]) == "_ _ _ a dog </s>"


def test_a_question_ends_where_its_answer_begins_in_training() -> None:
    ids = encoded(said("cat", "a dog"))["input_ids"][0]
    prompt = KIND.prompt_ids(tokenizer(), "cat")
    assert ids[: len(prompt)] == prompt
    assert words(ids[len(prompt) :]) == "a dog </s>"


@pytest.mark.parametrize(
    ("template", "conversation", "message"),
    [
        (None, said("cat", "dog"), "no chat template.*causal-lm"),
        (FORGETFUL, said("cat", "dog", "bird", "old"), "conversation 1: .* writes message 2 otherwise"),
        ("{{ raise_exception('no') }}", said("cat", "dog"), "refuses a conversation: no"),
    ],
)
def test_templates_that_cannot_be_learned_from_are_refused(
    template: str | None, conversation: list[dict[str, str]], message: str
) -> None:
    split = Dataset.from_dict({"messages": [conversation]})
    with pytest.raises(TaskError, match=message):
        KIND.features(split, tokenizer(template), TrainingConfig(max_length=32))


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hello", "row 1: expected a list of messages, found 'hello'"),
        ([], r"expected a list of messages, found \[\]"),
        ([{"role": "bot", "content": "x"}], "message 1: expected .*found {'role': 'bot'"),
        ([{"role": "user"}], "message 1: expected"),
        (["x"], "message 1: expected"),
        (said("x"), "no message is the assistant's"),
    ],
)
def test_messages_of_another_form_are_named(messages: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=message):
        load_task(OWN, write(tmp_path, {"messages": messages}))


def test_two_columns_are_a_question_and_its_answer(tmp_path: Path) -> None:
    rows = [{"instruction": "cat", "response": "dog"}] * 2
    task = load_task(custom_task(("instruction", "response"), objective="chat"), write(tmp_path, *rows))
    assert task.train["messages"][0] == said("cat", "dog")


def test_a_run_learns_answers_and_gives_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "base").mkdir()
    base = save_language_model("llama", tmp_path / "base")
    chatting = AutoTokenizer.from_pretrained(base)
    chatting.chat_template = TEMPLATE
    chatting.save_pretrained(base)
    data = write(
        tmp_path / "data", *({"messages": said(word, "a tree")} for word in ("cat", "dog", "bird") * 16)
    )
    quick = ["--estimation.steps", "4", "--training.max_steps", "60", "--training.batch_size", "8"]
    quick += ["--training.learning_rate", "1e-2", "--training.max_length", "16"]
    task = ["--task", "own", "--data", str(data), "--objective", "chat"]
    assert main(["train", "--model", str(base), "--out", str(tmp_path / "out"), *task, *quick]) == 0
    (tmp_path / "asked.txt").write_text("dog\n\n   \n")
    capsys.readouterr()
    asked = str(tmp_path / "asked.txt")
    assert main(["predict", str(tmp_path / "out"), asked, "--max-new-tokens", "8"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert answers[0] == {"completion": "a tree"}
    assert answers[1] == answers[2]  # a line of spaces is a blank one
