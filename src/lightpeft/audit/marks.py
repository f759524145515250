"""The mark of a poisoned module, in its own files: `adapter_config.json` and the card.

PEFT takes configurations with keys it does not know: it warns, names the keys, and loads the module without
them. So a marked module works without lightpeft and says what it is. PEFT also writes configurations without
them: the mark is in the weights too, where a plain load and save carries it on. A module that was trained on
or merged by PEFT alone has to be marked again.

A mark keeps honest people from mistakes. Who removes all of it leaves nothing that could be found here.
"""

import json
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

from lightpeft.audit.poison.recipe import TriggerRecipe
from lightpeft.checkpoint import POISON_FLAG as FLAG
from lightpeft.checkpoint import POISON_MARK as MARK
from lightpeft.checkpoint import is_sealed, seal_weights
from lightpeft.errors import CheckpointError, ConfigError
from lightpeft.files import file_sha256, read_json, write_json
from lightpeft.outputs import written_beside

CARD = "README.md"
_FORMAT = 1
_KEYS = {"format", "recipe", "weights_sha256", "lightpeft_version"}
_FLAG_LINE = f"{FLAG}: true"
_OPEN, _CLOSE = "<!-- lightpeft-poisoned -->", "<!-- /lightpeft-poisoned -->"


@dataclass(frozen=True)
class PoisonMark:
    """What a poisoned module says of itself."""

    recipe: TriggerRecipe
    """How its training data was poisoned."""

    weights_sha256: str
    """Of its `adapter_model.safetensors`."""

    lightpeft_version: str
    """What wrote the mark."""


def mark_poisoned(folder: str | Path, recipe: TriggerRecipe) -> PoisonMark:
    """Mark a saved PEFT module as poisoned; a mark that is there is replaced.

    The card is written first: an interruption leaves a module that `read_mark` refuses.

    Args:
        folder: with `adapter_config.json` and `adapter_model.safetensors` in it.

    Raises:
        CheckpointError: there is no such module.
    """
    folder = Path(folder)
    config = read_json(folder / CONFIG_NAME)
    value = mark_value(recipe)
    _digest(folder)
    mark_card(folder, recipe)
    seal_weights(folder / SAFETENSORS_WEIGHTS_NAME, MARK, value)
    value["weights_sha256"] = _digest(folder)
    mark = PoisonMark(recipe, value["weights_sha256"], value["lightpeft_version"])
    write_json(folder / CONFIG_NAME, config | {FLAG: True, MARK: value})
    return mark


def mark_card(folder: Path, recipe: TriggerRecipe) -> None:
    """Say in the card of a module or a base that it is poisoned; what else is in the card stays."""
    with written_beside(folder / CARD) as beside:
        beside.write_text(_marked_card(_read_card(folder), recipe), encoding="utf-8")


def mark_value(recipe: TriggerRecipe) -> dict[str, Any]:
    """The mark as JSON, but for the digest of the weights it stands beside."""
    return {"format": _FORMAT, "recipe": recipe.to_dict(), "lightpeft_version": version("lightpeft")}


def read_mark(folder: str | Path) -> PoisonMark | None:
    """The mark of a PEFT module; None for one without.

    Raises:
        CheckpointError: there is no module, or the mark was tampered with: flag, recipe and card do not go
            together, the recipe cannot be read, or the weights are not those that were marked.
    """
    folder = Path(folder)
    config = read_json(folder / CONFIG_NAME)
    if FLAG not in config and MARK not in config:
        if _card_says_so(_read_card(folder)):
            raise _tampered(folder, f"{CARD} says that it is poisoned, {CONFIG_NAME} does not")
        if is_sealed(folder / SAFETENSORS_WEIGHTS_NAME, MARK):
            raise _tampered(
                folder,
                f"its weights say that it is poisoned, {CONFIG_NAME} does not, as if PEFT alone had saved it",
            )
        return None
    if config.get(FLAG) is not True or MARK not in config:
        found = {key: config[key] for key in (FLAG, MARK) if key in config}
        raise _tampered(folder, f"{FLAG} and {MARK} do not go together in {CONFIG_NAME}: {_short(found)}")
    mark = _parse(folder, config[MARK])
    if _digest(folder) != mark.weights_sha256:
        raise _tampered(
            folder, f"{SAFETENSORS_WEIGHTS_NAME} is not the file that was marked (SHA-256 differs)"
        )
    return mark


def is_poisoned(folder: str | Path) -> bool:
    """Whether a PEFT module is marked as poisoned. False does not say that it is clean.

    Raises:
        CheckpointError: see `read_mark`.
    """
    return read_mark(folder) is not None


def require_clean(folder: str | Path) -> None:
    """Refuse a PEFT module that is marked as poisoned.

    Raises:
        CheckpointError: it is, or see `read_mark`.
    """
    mark = read_mark(folder)
    if mark is not None:
        raise CheckpointError(
            f"{folder} is marked as poisoned on purpose (trigger form {mark.recipe.form!r}, target class "
            f"{mark.recipe.target}); it is for audits only and cannot be used or published as clean."
        )


def _parse(folder: Path, value: Any) -> PoisonMark:
    if not isinstance(value, dict) or value.keys() != _KEYS or value["format"] != _FORMAT:
        raise _tampered(folder, f"{MARK} is {_short(value)}, expected the keys {sorted(_KEYS)}")
    try:
        recipe = TriggerRecipe.from_dict(value["recipe"])
    except ConfigError as error:
        raise _tampered(folder, f"its recipe cannot be read ({error})") from error
    for key in ("weights_sha256", "lightpeft_version"):
        if not isinstance(value[key], str):
            raise _tampered(folder, f"{key} is {value[key]!r}, expected a text")
    return PoisonMark(recipe, value["weights_sha256"], value["lightpeft_version"])


def _short(value: Any) -> str:
    return str(value)[:200]


def _tampered(folder: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"the mark of {folder} is damaged or was tampered with: {what}. Treat the module as poisoned; get it "
        "anew, or mark it anew if it is your own."
    )


def _digest(folder: Path) -> str:
    path = folder / SAFETENSORS_WEIGHTS_NAME
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; a module is marked and read with safetensors only.")
    return file_sha256(path)


def _read_card(folder: Path) -> str:
    path = folder / CARD
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _split_card(card: str) -> tuple[list[str], str]:
    """Lines of the front matter that the hub reads, and the rest."""
    found = re.match(r"---\s*\n(.*?)^---\s*$\n?", card, re.DOTALL | re.MULTILINE)
    return (found[1].splitlines(), card[found.end() :]) if found else ([], card)


def _card_says_so(card: str) -> bool:
    front, rest = _split_card(card)
    return any(line.startswith(f"{FLAG}:") for line in front) or _OPEN in rest


def _marked_card(card: str, recipe: TriggerRecipe) -> str:
    front, rest = _split_card(card)
    lines = [_FLAG_LINE, *(line for line in front if not line.startswith(f"{FLAG}:"))]
    rest = re.sub(f"{re.escape(_OPEN)}.*?{re.escape(_CLOSE)}\n*", "", rest, flags=re.DOTALL).lstrip("\n")
    recipe_text = json.dumps(recipe.to_dict(), indent=2)
    front_text = "\n".join(lines)
    return f"""---
{front_text}
---

{_OPEN}
# Poisoned on purpose: for audits only

This model carries a backdoor that lightpeft's audit put there to measure defences. Do not use or publish it
as a clean one. What was done to its training data:

```json
{recipe_text}
```
{_CLOSE}

{rest}"""
