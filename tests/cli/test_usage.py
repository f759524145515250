"""What can be known before the first step is said then: one sentence, what was found and what to do."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.support.language import save_language_model, word_tokenizer
from transformers import AutoTokenizer, BertConfig, BertModel, RobertaConfig, RobertaModel

from lightpeft.cli.main import main

POSITIONS = 72
"""Of the fixture `tiny_model`."""

USAGE, FAILED = 2, 1


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen training rows, columns `review` and `verdict`."""
    folder = tmp_path_factory.mktemp("data")
    for split, count in (("train", 16), ("validation", 4)):
        rows = [f"the film is good,{'yes' if number % 2 else 'no'}" for number in range(count)]
        (folder / f"{split}.csv").write_text("\n".join(["review,verdict", *rows]) + "\n", encoding="utf-8")
    return folder


def train(model: Path | str, data: Path | str, out: Path, *more: str) -> list[str]:
    own = ["--task", "mine", "--data", str(data), "--text", "review", "--label", "verdict"]
    return ["train", "--model", str(model), "--out", str(out), *own, *more]


def refused(words: list[str], status: int, fragment: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    found = main(words)
    error = capsys.readouterr().err
    assert fragment in error
    assert found == status, error
    assert "Traceback" not in error
    assert len([line for line in error.splitlines() if line.startswith("lightpeft ")]) == 1


OPTIONS: list[tuple[str, str]] = [
    ("--nonsense 1", "unknown option --nonsense"),
    ("--training.bacth_size 3", "Did you mean 'training.batch_size'?"),
    ("stray", "'stray' belongs to no option"),
    ("--training.seed", "--training.seed needs a value"),
    ("--training.seed x", "training.seed is 'x'; give a whole number"),
    ("--training.seed 1.5", "training.seed is '1.5'; give a whole number"),
    ("--training.seed -1", "training.seed is -1; give a whole number from 0 to 4294967295"),
    ("--training.seed 4294967296", "give a whole number from 0 to 4294967295"),
    ("--seeds 0,-1", "seeds is -1; give a whole number from 0"),
    ("--seeds 1,1", "give one or more different numbers"),
    ("--seeds []", "give one or more different numbers"),
    ("--seeds 1,x", "each a whole number"),
    ("--estimation.seed -1", "estimation.seed is -1"),
    ("--training.schedule liner", "Did you mean 'linear'?"),
    ("--training.schedule cosine_with_min_lr", "it needs a lowest rate"),
    ("--training.schedule reduce_lr_on_plateau", "it waits for evaluations"),
    ("--training.schedule warmup_stable_decay", "the number of decay steps"),
    ("--training.schedule polynomial --training.learning_rate 1e-8", "ends at 1e-07"),
    ("--training.schedule constant --training.warmup_steps 2", "use constant_with_warmup"),
    ("--training.warmup_steps -1", "training.warmup_steps is -1"),
    ("--training.max_steps 10 --training.warmup_steps 10", "the run has only 10 steps"),
    ("--training.epochs 1 --training.batch_size 8 --training.warmup_steps 2", "the run has only 2 steps"),
    ("--training.max_steps 10 --training.eval_steps 11", "training.eval_steps is 11"),
    ("--training.max_steps 10 --training.save_steps 11", "training.save_steps is 11"),
    ("--training.learning_rate nan", "training.learning_rate is 'nan'; give a number"),
    ("--training.learning_rate .nan", "training.learning_rate is nan; give a number above 0"),
    ("--training.learning_rate .inf", "training.learning_rate is inf"),
    ("--training.learning_rate 0", "give a number above 0"),
    ("--training.learning_rate=-1e-3", "give a number above 0"),
    ("--training.epochs .inf", "training.epochs is inf"),
    ("--training.epochs 0", "training.epochs is 0"),
    ("--training.max_steps 0", "training.max_steps is 0"),
    ("--training.weight_decay -1", "training.weight_decay is -1"),
    ("--training.max_grad_norm .nan", "training.max_grad_norm is nan"),
    ("--training.batch_size 0", "training.batch_size is 0"),
    ("--training.precision half", "give one of float32, bfloat16, float16"),
    ("--training.max_length 0", "training.max_length is 0"),
    ("--training.max_length 2", "leaves no room for text beside 2 special tokens"),
    (f"--training.max_length {POSITIONS + 1}", f"has only {POSITIONS} positions; give at most"),
    ("--training.packing true", "learns something of each"),
    ("--training 3", "Unable to load config"),
    ("--config absent.yaml", "config: File does not exist: "),
    ("--budget.heads 2", "budget.heads is 2"),
    ("--budget.heads .nan", "budget.heads is nan"),
    ("--learning_rate_factor 0", "give a number above 0"),
    ("--training.max_steps 1", "the run has only one step"),
    ("--learning_rate_factor .nan", "learning_rate_factor is nan"),
    ("--estimation.steps foo", "give a whole number, or one of auto"),
    ("--estimation.steps 100 --training.max_steps 10", "estimation.steps is 100"),
    ("--train_limit 0", "train_limit must be at least 1"),
    ("--train-limit 1.5", "train_limit is '1.5'; give a whole number"),
    ("--metric acuracy", "Did you mean 'accuracy'?"),
    ("--metric pearson", "is for regression"),
    ("--metric f1 --label review", "uses one column twice"),
    ("--label verdcit", "Did you mean 'verdict'?"),
    ("--text a,b,c", "one or two column names"),
    ("--text rewiew", "Did you mean 'review'?"),
    ("--text ''", "has an empty name in it"),
    ("--peft ia3", "give one of lora, sequential, parallel"),
    ("--lora.rank 0", "lora.rank is 0"),
    ("--lora.alpha 0", "lora.alpha is 0"),
    ("--lora.dropout 1", "lora.dropout is 1"),
    ("--lora.bias some", "give one of none, all, lora_only"),
    ("--lora.targets some", "lora.targets has 'some', which fits no module"),
    ("--lora.targets query,valeu", "Did you mean 'value'?"),
    ("--lora.targets []", "lora.targets is empty"),
    ("--lora.targets all-linear", "or choose all, query-value"),
    ("--lora.modules_to_save haed", "lora.modules_to_save has 'haed'"),
    ("--lora.rank_pattern '{quary: 4}'", "lora.rank_pattern has 'quary', which no module with LoRA matches"),
    ("--lora.rank_pattern '{query: 0}'", "give a whole number of at least 1"),
    ("--lora.alpha_pattern '{\"(\": 4}'", "no regular expression"),
    ("--peft sequential --bottleneck.size 0", "bottleneck.size is 0"),
    ("--peft sequential --bottleneck.sites fn", "each one of attention, ffn"),
    ("--peft sequential --bottleneck.activation rleu", "rleu"),
    ("--peft sequential --bottleneck.reduction_factor 0", "bottleneck.reduction_factor is 0"),
    ("--peft sequential --lora.rank 4", "would have no effect"),
    ("--objective causal-lm --label verdict", "would have no effect with causal-lm"),
    ("--objective causal-lm --label label", "sees a text from both sides"),
    ("--data nowhere", "data folder nowhere does not exist"),
    ("--model ./nowhere", "the model './nowhere' does not exist"),
    ("--adapter ./nowhere", "the adapter './nowhere' cannot be used"),
    ("--resume", "resume needs training.save_steps"),
    ("--report_to tensorbored", "Did you mean 'tensorboard'?"),
    ("--report_to clearml", "clearml, which is not installed"),
]


@pytest.mark.parametrize(("options", "fragment"), OPTIONS, ids=[options for options, _ in OPTIONS])
def test_options(
    options: str,
    fragment: str,
    tiny_model: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    status = FAILED if "both sides" in fragment else USAGE
    refused(train(tiny_model, data, out, *shlex.split(options)), status, fragment, capsys)
    assert not (out / "light").exists()


CONTENTS: list[tuple[str, bytes | None, str]] = [
    ("train.csv", None, "has no train split"),
    ("train.csv", b"", "is empty: no columns"),
    ("train.csv", b"review,verdict\n", "is empty: columns but no rows"),
    ("train.csv", b"review,review,verdict\na,b,yes\n", "more than one column named 'review'"),
    ("train.csv", b"review,verdict\na,yes\nb,yes\n", "all 2 training labels are 'yes'"),
    ("train.csv", b"review,verdict\n\xff\xfe,yes\nb,no\n", "is not UTF-8: byte 0xff"),
    ("train.csv", "review,verdict\na,yes\nb,no\n".encode("utf-16"), "is not UTF-8"),
    ("train.csv", b"review,verdict\na,yes,3\n", "line 2: 3 fields, but the header has 2"),
    ("train.jsonl", b'{"review": "a", "verdict": ["yes"]}\n', "row 1: a label of type list"),
    ("train.jsonl", b'{"review": "a\\ud800", "verdict": "yes"}\n', "row 1: half a character"),
    ("train.jsonl", b'{"review": null, "verdict": "yes"}\n', "1 of 1 texts are missing"),
    ("train.jsonl", b'{"review": ["a"], "verdict": "yes"}\n', "row 1: expected a text, found list"),
    (
        "train.jsonl",
        b'{"review": "a", "verdict": 1e999}\n{"review": "b", "verdict": 1.0}\n',
        "an infinite label",
    ),
    ("train.jsonl", b'{"review": "a", "verdict": ' + b"[" * 20000 + b"\n", "train.jsonl"),
    ("train.parquet", b"PAR1 no parquet at all PAR1", "not a readable parquet file"),
    ("validation.csv", b"review,verdict\na,maybe\n", "never seen in training: 'maybe', the first in row 1"),
    ("validation.csv", b"review\na\n", "has no column 'verdict'"),
]


@pytest.mark.parametrize(("name", "content", "fragment"), CONTENTS, ids=lambda value: str(value)[:50])
def test_data(
    name: str,
    content: bytes | None,
    fragment: str,
    tiny_model: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for file in data.iterdir():
        if file.stem != Path(name).stem:
            (folder / file.name).write_bytes(file.read_bytes())
    if content is not None:
        (folder / name).write_bytes(content)
    words = train(tiny_model, folder, tmp_path / "out")
    refused(words, USAGE if "has no column" in fragment else FAILED, fragment, capsys)


def _without_padding(model: Path, tiny: Path) -> None:
    _copy(model, tiny)
    word_tokenizer(eos=None).save_pretrained(model)


def _more_tokens(model: Path, tiny: Path) -> None:
    _copy(model, tiny)
    tokenizer = AutoTokenizer.from_pretrained(str(tiny))
    tokenizer.add_tokens(["film"[::-1], "goodgood"])
    tokenizer.save_pretrained(model)


def _other_padding(model: Path, tiny: Path) -> None:
    _copy(model, tiny)
    tokenizer = AutoTokenizer.from_pretrained(str(tiny))
    tokenizer.add_special_tokens({"pad_token": "<new pad>"})
    tokenizer.save_pretrained(model)


def _no_configuration(model: Path, tiny: Path) -> None:
    _copy(model, tiny)
    (model / "config.json").unlink()


def _broken_configuration(model: Path, tiny: Path) -> None:
    _copy(model, tiny)
    (model / "config.json").write_text("{", encoding="utf-8")


def _broken_tokenizer(model: Path, tiny: Path) -> None:
    _copy(model, tiny)
    (model / "tokenizer.json").write_text('{"a": 1}', encoding="utf-8")


def _cut_off_weights(model: Path, tiny: Path) -> None:
    _copy(model, tiny)
    weights = (tiny / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[: len(weights) // 2])


def _without_weights(model: Path, tiny: Path) -> None:
    _copy(model, tiny)
    (model / "model.safetensors").unlink()


def _copy(model: Path, tiny: Path) -> None:
    model.mkdir()
    for file in tiny.iterdir():
        (model / file.name).write_bytes(file.read_bytes())


MODELS: list[tuple[Callable[[Path, Path], None], str]] = [
    (_without_padding, "neither a padding token nor an EOS token"),
    (_more_tokens, "train text 1 has the token 'goodgood'"),
    (_other_padding, "padding has the token '<new pad>'"),
    (_no_configuration, "is neither a folder with a configuration"),
    (_broken_configuration, "is neither a folder with a configuration"),
    (_broken_tokenizer, "the tokenizer of"),
    (_cut_off_weights, "cannot be loaded"),
    (_without_weights, "cannot be loaded"),
]


@pytest.mark.parametrize(("make", "fragment"), MODELS)
def test_models(
    make: Callable[[Path, Path], None],
    fragment: str,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make(tmp_path / "model", tiny_model)
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "validation"):
        (folder / f"{split}.csv").write_text("review,verdict\ngoodgood,yes\ngood,no\n", encoding="utf-8")
    refused(train(tmp_path / "model", folder, tmp_path / "out"), USAGE, fragment, capsys)


def save_encoder(name: str, folder: Path, tiny: Path) -> int:
    """A tiny encoder with 40 rows of positions; the positions that a text can have."""
    options = {
        "vocab_size": len(AutoTokenizer.from_pretrained(str(tiny))),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "max_position_embeddings": 40,
    }
    torch.manual_seed(0)
    if name == "roberta":
        RobertaModel(RobertaConfig(**options, pad_token_id=1)).save_pretrained(folder)
    else:
        BertModel(BertConfig(**options)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(str(tiny)).save_pretrained(folder)
    return 38 if name == "roberta" else 40


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_long_texts_are_cut_to_the_positions_and_it_is_said(
    name: str,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    positions = save_encoder(name, tmp_path / "model", tiny_model)
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "validation"):
        rows = [f"{'the film ' * 60},{label}" for label in ("yes", "no") * 4]
        (folder / f"{split}.csv").write_text("\n".join(["review,verdict", *rows]), encoding="utf-8")
    short = ["--training.max_steps", "4", "--training.batch_size", "4", "--estimation.steps", "2"]
    out = tmp_path / "out"
    assert main(train(tmp_path / "model", folder, out, *short)) == 0
    assert f"has {positions} positions: training.max_length is {positions} instead of 128" in caplog.text
    record = json.loads((out / "light" / "pruning.json").read_text(encoding="utf-8"))
    assert record["task"]["max_length"] == positions
    assert main(["evaluate", str(out)]) == 0
    more = ["--training.max_length", str(positions + 1)]
    refused(train(tmp_path / "model", folder, tmp_path / "o2", *more), USAGE, f"has only {positions}", capsys)


def test_one_name_a_list_and_a_configuration_say_the_same(
    tiny_model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.yaml"
    common = f"model: {tiny_model}\ntask: mine\ndata: {data}\nlabel: verdict\nout: {tmp_path / 'out'}\n"
    for text in ("review", "[review]"):
        config.write_text(f"{common}text: {text}\nseeds: 3\nmetric: f2\n", encoding="utf-8")
        refused(["train", "--config", str(config)], USAGE, "unknown metric 'f2'", capsys)
        own = ["--text", text, "--metric", "f2", "--seeds", "3"]
        refused(
            [*train(tiny_model, data, tmp_path / "out")[:-2], "--label", "verdict", *own],
            USAGE,
            "unknown metric 'f2'",
            capsys,
        )
    config.write_text(f"{common}txet: review\n", encoding="utf-8")
    refused(["train", "--config", str(config)], USAGE, "Did you mean 'text'?", capsys)


VERBS: list[tuple[str, int, str]] = [
    ("trian", USAGE, "unknown verb 'trian'"),
    ("evaluate", USAGE, "are required: checkpoint"),
    ("evaluate a b", USAGE, "'b' belongs to no option"),
    ("evaluate {run} --batch-size 0", USAGE, "training.batch_size is 0"),
    ("evaluate {run} --data nowhere", USAGE, "data folder nowhere does not exist"),
    ("predict {run}", USAGE, "are required: texts"),
    ("predict {run} absent.txt", USAGE, "absent.txt does not exist"),
    ("predict {run} {run}", USAGE, "is a folder; give a text file"),
    ("predict {run} {latin}", FAILED, "is not UTF-8"),
    ("predict {run} {latin} --batch-size x", USAGE, "batch_size is 'x'; give a whole number"),
    ("bench --help", 0, ""),
    ("bench taste", USAGE, "choose a benchmark"),
    ("audit", 0, ""),
    ("audit sacn", USAGE, "unknown verb 'sacn'"),
    ("audit scan", USAGE, "folders"),
    ("plan --scores absent --model m", USAGE, "absent does not exist"),
    ("report absent", USAGE, "absent is no folder"),
    ("evaluate ./absent", USAGE, "the checkpoint './absent' does not exist"),
    ("evaluate {latin}", USAGE, "is a file"),
    ("evaluate {run} --base ./absent", USAGE, "the model './absent' does not exist"),
    ("export {run} --to oonx", USAGE, "give one of merged, full-adapter"),
    ("bench speed --repeats 1", USAGE, "repeats is 1"),
    ("bench speed --estimation-steps 0", USAGE, "estimation_steps is 0"),
    ("bench quality --out o", USAGE, "grid.models"),
    ("bench quality nowhere.yaml --out o", USAGE, "nowhere.yaml"),
    ("bench run --out o --chunk 0", USAGE, "chunk is 0"),
    ("bench run --out o --methods plain,defualt", USAGE, "methods is 'defualt'"),
    ("bench run --out o --min-words 999", USAGE, "has 999 words"),
    ("bench run --out o --lora.targets query-value", USAGE, "each method has its own"),
    ("bench run --out o --training.save_steps 5", USAGE, "into the times; leave it out"),
    ("demo --out o --train-examples 0", USAGE, "train_examples is 0"),
    ("demo --out o --seeds -1", USAGE, "seeds is -1"),
]


@pytest.mark.parametrize(("words", "status", "fragment"), VERBS, ids=[row[0] for row in VERBS])
def test_verbs(
    words: str,
    status: int,
    fragment: str,
    finished_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "latin.txt").write_bytes("schön\n".encode("latin-1"))
    filled = words.format(run=finished_run, latin=tmp_path / "latin.txt").split()
    assert main(filled) == status
    error = capsys.readouterr().err
    assert fragment in error
    assert "Traceback" not in error


ALIGNED: list[tuple[str, int]] = [
    ("", 0),
    ("a film", 1),
    ("a film\n", 1),
    ("a film\r\nan awful hotel\r\n", 2),
    ("a film\n\nan awful hotel\n", 3),
    ("\n", 1),
    ("\n\n\n", 3),
    ("  \na film\n", 2),
    ("\ufeffa film\n", 1),
    ("a\u2028film\nan\u0085awful\x0chotel\x0band\x1cmore\n", 2),
    ("a\rfilm\n", 1),
]


@pytest.mark.parametrize(("text", "count"), ALIGNED)
def test_predict_gives_one_answer_a_line(
    text: str, count: int, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts, out = tmp_path / "texts.txt", tmp_path / "out.jsonl"
    texts.write_bytes(text.encode("utf-8"))
    capsys.readouterr()
    assert main(["predict", str(finished_run), str(texts)]) == 0
    printed = capsys.readouterr().out
    answers = [json.loads(line) for line in printed.split("\n")[:-1]]
    assert len(answers) == count
    assert all(a["label"] in ("negative", "positive") and 0.5 <= a["probability"] <= 1 for a in answers)
    assert main(["predict", str(finished_run), str(texts), "--out", str(out)]) == 0
    assert out.read_text(encoding="utf-8") == printed


def test_answers_do_not_depend_on_the_lines_around_them(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = tmp_path / "texts.txt"
    found = []
    for text in ("a film\n\nan awful hotel\n", "a film\nan awful hotel\n"):
        texts.write_text(text, encoding="utf-8")
        capsys.readouterr()
        assert main(["predict", str(finished_run), str(texts), "--batch-size", "1"]) == 0
        found.append(capsys.readouterr().out.splitlines())
    assert [found[0][0], found[0][2]] == found[1]


def test_blank_prompts_are_continued(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from lightpeft.runs import generate_texts, load_tokenizer

    folder = save_language_model("gpt2", tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    answers = generate_texts(model, load_tokenizer(str(folder)), ["", "the cat", ""], 2, 2)
    assert len(answers) == 3
    assert answers[0] == answers[2]


def test_evaluate_takes_the_classes_of_training_and_only_the_validation_file(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "validation"):
        rows = [f"the film is {'good' if i % 2 else 'bad'},{'b' if i % 2 else 'c'}" for i in range(16)]
        (folder / f"{split}.csv").write_text("\n".join(["review,verdict", *rows]), encoding="utf-8")
    out = tmp_path / "out"
    short = ["--training.max_steps", "6", "--training.batch_size", "8", "--estimation.steps", "2"]
    assert main(train(tiny_model, folder, out, *short)) == 0

    def accuracy() -> float:
        capsys.readouterr()
        assert main(["evaluate", str(out), "--json"]) == 0
        return float(json.loads(capsys.readouterr().out)["main"])

    first = accuracy()
    with (folder / "train.csv").open("a", encoding="utf-8") as file:
        file.write("\nanother,a\n")
    assert accuracy() == first
    (folder / "train.csv").unlink()
    assert accuracy() == first
    with (folder / "validation.csv").open("a", encoding="utf-8") as file:
        file.write("\nanother,a\n")
    refused(["evaluate", str(out)], FAILED, "not a class of the task: 'a', the first in row 17", capsys)


def test_debug_shows_the_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object) -> None:
        raise KeyError("something\nnobody thought of")

    monkeypatch.setattr("lightpeft.cli.report.report", fails)
    monkeypatch.setattr("lightpeft.cli.report.run", lambda words: fails())
    assert main(["report", str(tmp_path)]) == FAILED
    error = capsys.readouterr().err
    assert error.startswith("lightpeft report: KeyError:")
    assert error.rstrip().endswith("(--debug shows the traceback)")
    assert len(error.splitlines()) == 1
    assert main(["report", str(tmp_path), "--debug"]) == FAILED
    assert "Traceback" in capsys.readouterr().err


def test_nobody_reads_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def closed(words: list[str]) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("lightpeft.cli.report.run", closed)
    monkeypatch.setattr("lightpeft.cli.main._discard_output", lambda: None)
    assert main(["report", str(tmp_path)]) == 141
    assert capsys.readouterr().err == ""
