"""The tasks of SuperGLUE (Wang et al. 2019), and what their rows become to be learned."""

from typing import Any

from lightpeft.tasks.spec import HubSource, Rewrite, TaskSpec

_NO_YES = ("False", "True")
_JOINTS = {"cause": "because", "effect": "so"}
_PLACEHOLDER = "@placeholder"

Row = dict[str, Any]


def _copa(premise: str, question: str, choice1: str, choice2: str, **rest: Any) -> list[Row]:
    """The question becomes the word that joins premise and choice."""
    start = f"{premise.rstrip(' .')} {_JOINTS[question]}"
    return [{"start": start, "choice1": choice1, "choice2": choice2, **rest}]


def _wic(word: str, sentence1: str, sentence2: str, **rest: Any) -> list[Row]:
    """The word stands before the first sentence."""
    return [{"sentence1": f"{word}: {sentence1}", "sentence2": sentence2, **rest}]


def _wsc(text: str, span1_text: str, span2_text: str, span2_index: int, **rest: Any) -> list[Row]:
    """The pronoun is marked; the second text is what it may stand for."""
    words = text.split()
    width = len(span2_text.split())
    marked = [
        *words[: int(span2_index)],
        f"*{' '.join(words[int(span2_index) : int(span2_index) + width])}*",
        *words[int(span2_index) + width :],
    ]
    return [{"text": " ".join(marked), "span1_text": span1_text, **rest}]


def _multirc(paragraph: str, question: str, answer: str, **rest: Any) -> list[Row]:
    """The question of an answer is its group."""
    return [
        {
            "paragraph": paragraph,
            "claim": f"{question} {answer}",
            "group": f"{paragraph}\n{question}",
            "candidate": answer,
            **rest,
        }
    ]


def _record(passage: str, query: str, entities: list[str], answers: list[str]) -> list[Row]:
    """One row for every entity that may fill the gap."""
    passage = passage.replace("\n@highlight\n", " ")
    return [
        {
            "passage": passage,
            "claim": query.replace(_PLACEHOLDER, entity),
            "group": f"{passage}\n{query}",
            "candidate": entity,
            "label": int(entity in answers),
        }
        for entity in dict.fromkeys(entities)
    ]


def _row(
    name: str,
    text: tuple[str, ...],
    class_names: tuple[str, ...] | None = _NO_YES,
    metrics: tuple[str, ...] = ("accuracy",),
    rewrite: Rewrite | None = None,
    objective: str = "sequence-classification",
) -> TaskSpec:
    return TaskSpec(
        f"superglue/{name}",
        text,
        class_names=class_names,
        regression=None if class_names is None else False,
        metrics=metrics,
        main=metrics,
        source=HubSource("aps/super_glue", name, "refs/convert/parquet"),
        objective=objective,
        rewrite=rewrite,
    )


SUPERGLUE = (
    _row("boolq", ("question", "passage")),
    _row(
        "cb",
        ("premise", "hypothesis"),
        ("entailment", "contradiction", "neutral"),
        ("accuracy", "macro_f1"),
    ),
    _row(
        "copa",
        ("start", "choice1", "choice2"),
        None,
        rewrite=Rewrite(("premise", "question", "choice1", "choice2", "label"), _copa),
        objective="multiple-choice",
    ),
    _row(
        "multirc",
        ("paragraph", "claim"),
        metrics=("f1", "exact_match"),
        rewrite=Rewrite(("paragraph", "question", "answer", "label"), _multirc),
        objective="candidate-classification",
    ),
    _row(
        "record",
        ("passage", "claim"),
        metrics=("selected_f1", "selected_exact_match"),
        rewrite=Rewrite(("passage", "query", "entities", "answers"), _record),
        objective="candidate-classification",
    ),
    _row("rte", ("premise", "hypothesis"), ("entailment", "not_entailment")),
    _row(
        "wic", ("sentence1", "sentence2"), rewrite=Rewrite(("word", "sentence1", "sentence2", "label"), _wic)
    ),
    _row(
        "wsc",
        ("text", "span1_text"),
        rewrite=Rewrite(("text", "span1_text", "span2_text", "span2_index", "label"), _wsc),
    ),
)
