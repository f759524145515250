"""Learning what the assistant says in a conversation, written as the base's chat template writes it."""

from collections.abc import Iterator
from typing import Any

from datasets import Dataset, List, Value
from transformers import PreTrainedTokenizerBase

from lightpeft.run_config import TrainingConfig
from lightpeft.tasks.columns import Columns, checked_texts, filled_column
from lightpeft.tasks.errors import TaskError
from lightpeft.tasks.features import IGNORED
from lightpeft.tasks.files import Table
from lightpeft.tasks.kinds.language_modelling import (
    LanguageModelling,
    Row,
    check_tokenizer,
    encode_rows,
)
from lightpeft.tasks.labels import is_unicode
from lightpeft.tasks.spec import TaskSpec

ROLES = ("system", "user", "assistant", "tool")

Message = dict[str, str]


class Chat(LanguageModelling):
    """One text column holds lists of `{"role": ..., "content": ...}`; two hold a question and its answer."""

    name = "chat"
    own_text = ("messages",)

    def columns(self, spec: TaskSpec, table: Table) -> Columns:
        if len(spec.text) == 2:
            texts = checked_texts(spec.text, table)
            return {
                "messages": [
                    [{"role": "user", "content": asked}, {"role": "assistant", "content": told}]
                    for asked, told in zip(texts["text"], texts["text_pair"], strict=True)
                ]
            }
        where = f"{table.where}, column {spec.text[0]!r}"
        rows = filled_column(table, spec.text[0])
        return {"messages": [_checked(row, f"{where}, row {n}") for n, row in enumerate(rows, start=1)]}

    def types(self, spec: TaskSpec) -> dict[str, Any]:
        return {"messages": List({"role": Value("string"), "content": Value("string")})}

    def encode(self, split: Dataset, tokenizer: PreTrainedTokenizerBase, training: TrainingConfig) -> Dataset:
        check_tokenizer(tokenizer, training.tokens)
        _require_template(tokenizer)
        rows = _rows(split, tokenizer)
        return encode_rows(rows, len(split), tokenizer, training.tokens, packing=training.packing)

    def prompt_ids(self, tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
        """A line is what the user says first."""
        _require_template(tokenizer)
        return _ids(tokenizer, [{"role": "user", "content": prompt}], answering=True)


def _checked(row: Any, where: str) -> list[Message]:
    """The messages of a conversation, of which the assistant has at least one."""
    if not isinstance(row, list) or not row:
        raise TaskError(f"{where}: expected a list of messages, found {row!r:.60}")
    for number, message in enumerate(row, start=1):
        role, content = (
            message.get(key) if isinstance(message, dict) else None for key in ("role", "content")
        )
        if role not in ROLES or not isinstance(content, str) or not is_unicode(content):
            raise TaskError(
                f"{where}, message {number}: expected {{'role': one of {', '.join(ROLES)}, 'content': a "
                f"text}}, found {message!r:.60}"
            )
    if all(message["role"] != "assistant" for message in row):
        raise TaskError(
            f"{where}: no message is the assistant's, so there is nothing to learn; remove this row"
        )
    return [{"role": message["role"], "content": message["content"]} for message in row]


def _require_template(tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.chat_template is None:
        raise TaskError(
            "the tokenizer has no chat template; take a base that was made for chats, set "
            "tokenizer.chat_template and save it beside the base, or learn prompts and completions with "
            "causal-lm"
        )


def _rows(split: Dataset, tokenizer: PreTrainedTokenizerBase) -> Iterator[Row]:
    """Every conversation whole; learned is what stands between the prompt for an answer and its end."""
    for number, messages in enumerate(split["messages"], start=1):
        ids = _ids(tokenizer, messages)
        labels = [IGNORED] * len(ids)
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = _ids(tokenizer, messages[:turn], answering=True)
            after = _ids(tokenizer, messages[: turn + 1])
            if ids[: len(after)] != after or after[: len(before)] != before:
                raise TaskError(
                    f"conversation {number}: the chat template writes message {turn + 1} otherwise when the "
                    "conversation goes on, so what is learned cannot be told; keep one answer in each"
                )
            labels[len(before) : len(after)] = ids[len(before) : len(after)]
        yield ids, labels


def _ids(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], *, answering: bool = False
) -> list[int]:
    """Token ids of a conversation, up to where the assistant answers.

    Raises:
        TaskError: the template refuses it.
    """
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answering)
    except Exception as error:  # A template raises what it likes.
        raise TaskError(f"the chat template refuses a conversation: {error}") from error
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


KIND = Chat()
