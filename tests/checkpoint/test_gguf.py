"""GGUF files of cut language models: llama.cpp writes the same tokens, and reads texts as the same tokens."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from peft import PeftModel
from tests.checkpoint.test_stock import with_means
from tests.support.plans import UNEVEN
from tests.support.probing import random_scores
from tests.support.zoo import BY_NAME, Animal
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import lightpeft
from lightpeft import Budget, CheckpointError, find_anatomy, make_plan

xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp in a wheel, one of the extra dev")

TEXTS = ["the cat sees the old dog and the small red bird", "a house,  a tree; 1234 birds!", "Ünï ☂ \n x"]
LENGTH, NEW = 4, 12


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, as of GPT-2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS[:2] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def piece_tokenizer() -> PreTrainedTokenizerFast:
    """BPE of pieces with bytes for what has none, as SentencePiece makes for LLaMA."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    spaces = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence(spaces)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=special, max_token_length=5)
    tokenizer.train_from_iterator(TEXTS[:2] * 3, trainer)
    again = Tokenizer.from_str(_without_special_bytes(tokenizer))
    return PreTrainedTokenizerFast(
        tokenizer_object=again, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def _without_special_bytes(tokenizer: Tokenizer) -> str:
    """Bytes are ordinary tokens; the trainer knows no other way of giving them their ids."""
    values = json.loads(tokenizer.to_str())
    values["added_tokens"] = [one for one in values["added_tokens"] if not one["content"].startswith("<0x")]
    return json.dumps(values)


TOKENIZERS = {"bytes": byte_tokenizer, "pieces": piece_tokenizer}


OPTIONS: dict[str, dict[str, Any]] = {
    "gemma3": {
        "query_pre_attn_scalar": 4,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}


@dataclass(frozen=True)
class Row:
    """A cut, and what it is written as."""

    name: str
    written_as: str
    budget: Budget = UNEVEN
    compensated: bool = True

    @property
    def animal(self) -> Animal:
        """With a vocabulary for both tokenizers."""
        one = BY_NAME[self.name]
        more = {"vocab_size": 340, "bos_token_id": 0, "eos_token_id": 1} | OPTIONS.get(self.name, {})
        return replace(one, options=one.options | more)

    def cut(self) -> PeftModel:
        model = self.animal.with_lora()
        scores = random_scores(model)
        scores = with_means(scores, model) if self.compensated else scores
        lightpeft.cut(model, make_plan(scores, find_anatomy(model), self.budget), scores=scores)
        return model.eval()


EVEN = Budget(heads=0.5, neurons=0.4, modules=0.3, ranks=0.4, uniform=True)
BLOCKS = replace(UNEVEN, heads=0.7, neurons=0.7, min_heads=0, min_neurons=0)
ROWS = {
    "uneven": Row("llama", "deci"),
    "one layer left": Row("llama", "llama", replace(UNEVEN, layers=0.5), compensated=False),
    "whole blocks": Row("llama", "deci", BLOCKS),
    "even": Row("llama", "llama", EVEN),
    "even mistral": Row("mistral", "llama", EVEN),
    "uneven qwen2": Row("qwen2", "deci"),
    "even qwen3": Row("qwen3", "qwen3", EVEN, compensated=False),
    "even gemma": Row("gemma", "gemma", EVEN, compensated=False),
    "even gemma3": Row("gemma3", "gemma3", EVEN, compensated=False),
    "even gemma3, a layer gone": Row("gemma3", "gemma3", replace(EVEN, layers=0.5), compensated=False),
    "even qwen2, heads stay": Row("qwen2", "qwen2", replace(EVEN, heads=0.0), compensated=False),
}


def serve(file: Path) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup = str(file), 64, 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    return xllamacpp.Server(params)


def written(server: Any, prompt: object) -> str:
    options = {"prompt": prompt, "max_tokens": NEW, "temperature": 0.0, "ignore_eos": True}
    return str(server.handle_completions(options)["choices"][0]["text"])


def continued(model: PeftModel, ids: list[int], tokenizer: PreTrainedTokenizerFast) -> str:
    inputs = torch.tensor([ids])
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    found = model.generate(
        input_ids=inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=NEW, **options
    )
    return str(tokenizer.decode(found[0, len(ids) :]))


def export(row: Row, model: PeftModel, tokenizer: PreTrainedTokenizerFast | None, folder: Path) -> Path:
    light = lightpeft.save(model, folder / "light", tokenizer=tokenizer)
    return lightpeft.export_gguf(light, folder / "out", row.animal.build())


@pytest.mark.parametrize("name", ROWS)
def test_llama_cpp_writes_what_the_light_model_writes(name: str, tmp_path: Path) -> None:
    row, tokenizer = ROWS[name], byte_tokenizer()
    model = row.cut()
    file = export(row, model, tokenizer, tmp_path)
    fields = GGUFReader(file).fields
    assert fields["general.architecture"].contents() == row.written_as
    server = serve(file)
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"][:LENGTH]
        assert written(server, ids) == continued(model, ids, tokenizer)
    assert sorted(one.name for one in (tmp_path / "out").iterdir()) == ["lightpeft_files.json", "model.gguf"]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_llama_cpp_reads_texts_as_the_same_tokens(kind: str, tmp_path: Path) -> None:
    row, tokenizer = ROWS["uneven"], TOKENIZERS[kind]()
    model = row.cut()
    server = serve(export(row, model, tokenizer, tmp_path))
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert written(server, text) == written(server, ids)
        assert tokenizer.decode(ids) == text


def piece_tokenizer_without_bytes() -> PreTrainedTokenizerFast:
    model = models.BPE({"<unk>": 0, "▁": 1, "a": 2}, [], byte_fallback=True, unk_token="<unk>")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), unk_token="<unk>")


def word_tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))


@pytest.mark.parametrize(
    ("name", "tokenizer", "message"),
    [
        (
            "smollm3",
            byte_tokenizer,
            "the base is a smollm3; GGUF files are written of .* llama, mistral, qwen2",
        ),
        ("bert", byte_tokenizer, "of class AutoModelForSequenceClassification"),
        ("llama", word_tokenizer, "tokenizer is one of the kind 'WordLevel'"),
        ("llama", piece_tokenizer_without_bytes, "without a token for every byte"),
        ("llama", None, "tokenizer.json is missing"),
    ],
)
def test_what_llama_cpp_does_not_have_is_refused_before_work_starts(
    name: str, tokenizer: Any, message: str, tmp_path: Path
) -> None:
    row = Row(name, "")
    model = row.cut()
    light = lightpeft.save(model, tmp_path / "light", tokenizer=tokenizer and tokenizer())
    with pytest.raises(CheckpointError, match=message):
        lightpeft.export_gguf(light, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["light"]


@pytest.mark.parametrize("row", [Row("gemma3", "", UNEVEN), Row("qwen3", "", EVEN)])
def test_plans_that_an_architecture_has_no_room_for(row: Row, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"budget\.uniform=true and surgery\.compensate=false"):
        export(row, row.cut(), byte_tokenizer(), tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["light"]


def test_a_file_that_reads_back_otherwise_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaging(self: Any, *, progress: bool = False) -> None:
        for tensors in self.tensors:
            next(iter(tensors.values())).tensor = next(iter(tensors.values())).tensor * 1.5
        original(self, progress=progress)

    from gguf import GGUFWriter

    original = GGUFWriter.write_tensors_to_file
    monkeypatch.setattr(GGUFWriter, "write_tensors_to_file", damaging)
    with pytest.raises(CheckpointError, match=r"does not hold the model's tensors \(\['token_embd.weight'\]"):
        export(ROWS["uneven"], ROWS["uneven"].cut(), byte_tokenizer(), tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["light"]
