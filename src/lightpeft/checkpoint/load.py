"""`load`: base + plan + adapter, with every part checked first."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.quantization_config import QuantizationConfigMixin

from lightpeft.adapters import FORMS, find_modules
from lightpeft.checkpoint.format import ADAPTER, NOTE, PRUNING, READ, read_record
from lightpeft.checkpoint.origin import rebuild_base, rebuild_hollow
from lightpeft.checkpoint.own import restore_dtypes, restore_tensors
from lightpeft.checkpoint.poison import refuse_marked, refuse_marked_model, refuse_sealed
from lightpeft.checkpoint.quantise import quantise
from lightpeft.checkpoint.sharing import BareBase, share
from lightpeft.checkpoint.ways_out import guard
from lightpeft.errors import AnatomyError, CheckpointError, PlanError
from lightpeft.files import read_json
from lightpeft.linears import is_packed, is_plain_linear
from lightpeft.outputs import restore_left_behind
from lightpeft.surgery import CutRecord, narrow, reapply, verify_discovered
from lightpeft.wrapping import added_parameters


def load(
    folder: str | Path,
    base: str | Path | PreTrainedModel | None = None,
    *,
    revision: str | None = None,
    attn_implementation: str | None = None,
    quantization_config: QuantizationConfigMixin | None = None,
    is_trainable: bool = False,
    check_files: bool = True,
) -> PeftModel:
    """Rebuild the cut model with its adapter from a light checkpoint (a folder or a hub name).

    The weights of a base in safetensors are read one by one, and what is cut of each goes before the next: no
    whole base is in memory. Others, and those that transformers joins or converts, are read at once.

    Args:
        base: the base's folder or hub name; by default the one that the checkpoint names. Or the loaded
            base itself: the model then uses its embeddings and every weight that is neither cut nor under
            the adapter, so that several tasks fit beside it in memory (see `LightTasks`). The base is not
            changed, nor by training or merging the adapter; do not write to its frozen weights.
        revision: of a hub name: the branch, tag or commit of the checkpoint.
        quantization_config: how to quantise the base once it is cut, as `from_pretrained` takes it.
        is_trainable: keep the adapter trainable.
        check_files: off, files that were edited since they were saved are taken as they are.

    Raises:
        CheckpointError: a missing, damaged or truncated file, an unknown version, a plan that does not
            fit, another base than the one that was cut, one in memory that was cut or carries PEFT, or
            a mark of the audit.
    """
    directory = find_folder(folder, revision)
    record, described, own = read_record(directory, check_files=check_files)
    check_adapter_config(directory)
    named = described.get("base")
    how = base, named if isinstance(named, dict) else {}, record, attn_implementation
    bare = _bare_base(*how, quantises=quantization_config is not None)
    refuse_marked_model(bare.model)
    try:
        verify_discovered(bare.model)
        reapply(bare.model, record, bare.unread)
    except (PlanError, CheckpointError, AnatomyError, RuntimeError, AttributeError) as error:
        raise CheckpointError(f"{directory} does not fit the base: {error}") from error
    packed: frozenset[str] = frozenset()
    if quantization_config is not None:
        packed = _quantise(bare.model, quantization_config, own, directory)
    with bare.guarded():
        model = _attach_adapter(bare.model, directory, is_trainable)
    bare.part(model)
    guard(model)
    narrow(model)
    _check_adapter(model, record, directory)
    restore_tensors(model, {name: value for name, value in own.items() if name not in packed}, directory)
    bare.check_filled(model, own, directory)
    restore_dtypes(model, described.get("dtypes"), directory)
    model.train(is_trainable)
    return model


def _bare_base(
    base: str | Path | PreTrainedModel | None,
    described: dict[str, Any],
    record: CutRecord,
    attention: str | None,
    *,
    quantises: bool,
) -> BareBase:
    if isinstance(base, nn.Module):
        if attention is not None:
            raise CheckpointError("attn_implementation has no effect on a base that is already built.")
        if quantises:
            raise CheckpointError(
                "a base in memory is shared with other tasks, so it is not quantised; give its folder or hub "
                "name."
            )
        return share(base, described)
    how = described, record.base, None if base is None else str(base), attention
    if (hollow := rebuild_hollow(*how)) is not None:
        model, blank, unread = hollow
        return BareBase(model, blank=blank, unread=unread)
    model, blank = rebuild_base(*how)
    return BareBase(model, blank=blank)


def _quantise(
    base: PreTrainedModel, config: QuantizationConfigMixin, own: Mapping[str, Tensor], directory: Path
) -> frozenset[str]:
    """With the values that the checkpoint brings; the names of the weights that are quantised."""
    linears = {f"{name}.weight" for name, module in base.named_modules() if is_plain_linear(module)}
    restore_tensors(base, {name: value for name, value in own.items() if name in linears}, directory)
    quantise(base, config)
    return frozenset(name for name, parameter in base.named_parameters() if is_packed(parameter))


def find_folder(folder: str | Path, revision: str | None = None) -> Path:
    """The local folder of a checkpoint, fetched from the hub if `folder` is a hub name.

    Raises:
        CheckpointError: there is none, or a local folder is asked for in some revision.
    """
    path = Path(folder)
    if restore_left_behind(path) and path.is_dir():
        if revision is not None:
            raise CheckpointError(f"{folder} is a folder, of which there are no revisions; leave it out.")
        return path
    try:
        return Path(snapshot_download(str(folder), revision=revision, allow_patterns=list(READ)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        in_revision = "" if revision is None else f" in revision {revision!r}"
        raise CheckpointError(
            f"{folder} is neither a folder nor a light checkpoint that the hub gave{in_revision} ({error})."
        ) from error


def is_light_checkpoint(folder: str | Path) -> bool:
    """Whether `folder` is a local light checkpoint."""
    return (Path(folder) / PRUNING).is_file()


def check_adapter_config(directory: Path, *, marked_too: bool = False) -> None:
    """Refuse an adapter configuration that would make PEFT import code or read pickles.

    Args:
        marked_too: let modules pass that the audit marked as poisoned; for the audit itself.

    Raises:
        CheckpointError: such a configuration, one of a PEFT type that cannot be cut, or the mark of a module
            that the audit poisoned.
    """
    config = read_json(directory / "adapter_config.json")
    if not marked_too:
        refuse_marked(config, directory)
        refuse_sealed(directory)
    check_runs_no_code(directory, config)
    if config.get("peft_type") not in FORMS:
        raise CheckpointError(
            f"{directory}/adapter_config.json has the PEFT type {config.get('peft_type')!r}, expected one of "
            f"{', '.join(FORMS)}."
        )
    if not (directory / ADAPTER).is_file():
        raise CheckpointError(f"{directory / ADAPTER} is missing.")


def check_runs_no_code(directory: Path, config: Mapping[str, Any]) -> None:
    """Refuse an adapter configuration, of any PEFT type, that would make PEFT or transformers import code.

    Raises:
        CheckpointError: it is one.
    """
    library = str((config.get("auto_mapping") or {}).get("parent_library", "transformers"))
    if config.get("tokenizer_kwargs"):
        raise CheckpointError(
            f"{directory}/adapter_config.json sets tokenizer_kwargs, which could make transformers run code "
            "of the hub. Refused."
        )
    if config.get("megatron_config") or library.split(".")[0] != "transformers":
        raise CheckpointError(
            f"{directory}/adapter_config.json sets megatron_config, or auto_mapping to {library!r}, which "
            "makes PEFT import code that the file names. Refused."
        )


def _attach_adapter(base: PreTrainedModel, directory: Path, is_trainable: bool) -> PeftModel:
    try:
        config = light_adapter_config(directory)
        model = PeftModel.from_pretrained(base, str(directory), config=config, is_trainable=is_trainable)
        _load_wide(model, directory)
        find_modules(model)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"the adapter in {directory} does not fit the cut base: {error}") from error
    check_complete(model, directory)
    return model


def _load_wide(model: PeftModel, directory: Path) -> None:
    """PEFT makes adapters as wide as their base; those that are wider are loaded once more, unrounded."""
    with safe_open(directory / ADAPTER, framework="pt") as file:
        is_wide = any(file.get_slice(name).get_dtype() == "F64" for name in file.keys())  # noqa: SIM118
    if is_wide:
        for parameter in added_parameters(model):
            parameter.data = parameter.data.double()
        set_peft_model_state_dict(model, load_file(directory / ADAPTER))


def light_adapter_config(directory: Path) -> PeftConfig:
    """PEFT's configuration of a light checkpoint, without the note to those who load it by PEFT alone."""
    values = read_json(directory / "adapter_config.json")
    values.pop(NOTE, None)
    if "init_lora_weights" in values:  # the file brings all weights, and some ways to draw them want the base
        values["init_lora_weights"] = True
    config: PeftConfig = PeftConfig.from_peft_type(**PeftConfig.check_kwargs(**values))
    return config


def check_complete(model: PeftModel, directory: Path, *, embeddings_too: bool = False) -> None:
    """Check that the adapter's file has every tensor of a loaded adapter: PEFT leaves others at random.

    Args:
        embeddings_too: the file may bring the base's embeddings, as PEFT saves those that were enlarged.

    Raises:
        CheckpointError: tensors are missing, or there are some that the configuration does not ask for.
    """
    wanted = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    allowed = set(get_peft_model_state_dict(model, save_embedding_layers=True)) if embeddings_too else wanted
    try:
        with safe_open(directory / ADAPTER, framework="pt") as file:
            found = set(file.keys())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{directory / ADAPTER} cannot be read ({error}); it is damaged.") from error
    odd = sorted((wanted - found) | (found - allowed))
    if odd:
        raise CheckpointError(
            f"the adapter in {directory} does not fit: its file and its adapter_config.json disagree about "
            f"{len(odd)} tensors, {odd[0]} first."
        )


def _check_adapter(model: PeftModel, record: CutRecord, directory: Path) -> None:
    planned = {module.name: len(module.ranks) for module in record.plan.kept_modules}
    found = {module.name: module.rank for module in find_modules(model)}
    if planned != found:
        odd = sorted(name for name in planned.keys() | found.keys() if planned.get(name) != found.get(name))
        raise CheckpointError(
            f"{directory}: adapter_config.json and {PRUNING} disagree about the modules {odd[:3]}."
        )
