"""`lightpeft anatomy`: what can be cut in a model, and whether a probe cut verifies."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightpeft.cli.options import run_with_options
from lightpeft.cli.output import print_json

if TYPE_CHECKING:
    from lightpeft.anatomy import Anatomy, Units
    from lightpeft.surgery import ProbeReport


def run(arguments: Sequence[str]) -> int:
    """Entry point of the verb."""
    return run_with_options(anatomy, "anatomy", arguments, positional=True)


def anatomy(model: str, probe: bool = True, json: bool = False) -> int:
    """Show what can be cut in a model; no weights are loaded.

    Args:
        model: Hub name or folder of the base; only its configuration is read.
        probe: Cut a head and a neuron out of every layer of a small random copy, to verify what is shown.
        json: Print it as JSON, every layer by itself.
    """
    from lightpeft.anatomy import FAMILIES, attach_verdict, find_anatomy
    from lightpeft.runs import outline
    from lightpeft.surgery import probe_cuts

    base = outline(model)
    known = base.config.model_type in FAMILIES
    report = probe_cuts(base) if probe else None
    if report is not None and not known:
        attach_verdict(base, report.verdict)
    found = find_anatomy(base)
    total = sum(parameter.numel() for parameter in base.parameters())
    if json:
        print_json(_as_json(model, found, known, total, report))
    else:
        print("\n".join(_lines(model, found, known, total, report)))
    failed = report is not None and (not report.verified or (known and bool(report.refused)))
    return 1 if failed else 0


def anatomy_of(model: str) -> "Anatomy":
    """The anatomy of a base, from its configuration alone; an unknown architecture is verified on a copy.

    Raises:
        ConfigError: the configuration cannot be found.
        AnatomyError: nothing can be cut in it.
    """
    from lightpeft.runs import outline
    from lightpeft.surgery import verify_discovered

    return verify_discovered(outline(model))


def _lines(model: str, found: "Anatomy", known: bool, total: int, report: "ProbeReport | None") -> list[str]:
    """At most a screenful: a dozen lines for layers, the rest for everything else."""
    source = "in lightpeft's table" if known else "not in lightpeft's table"
    lines = [
        f"{model}: {source}; {total:,} parameters without a head on top",
        *found.describe().splitlines(),
        f"PEFT targets: {', '.join(_targets(found))}",
    ]
    if report is None:
        return [*lines, "not probed"]
    told = report.describe()
    # Of an architecture found by looking, the anatomy itself says what could not be verified.
    return lines + (told if known else told[:1])


def _targets(found: "Anatomy") -> list[str]:
    """Where LoRA goes: the linears of a layer, relative to it, each once."""
    names = [
        name.removeprefix(f"{layer.module}.")
        for layer in found.layers
        for units in layer.units
        for name in units.linears
    ]
    return list(dict.fromkeys(names))


def _as_json(
    model: str, found: "Anatomy", known: bool, total: int, report: "ProbeReport | None"
) -> dict[str, Any]:
    probed = report and {
        "copy": report.copy,
        "attentions": list(report.attentions),
        "verified": list(report.verified),
        "refused": report.refused,
    }
    return {
        "model": model,
        "model_type": found.model_type,
        "known": known,
        "parameters": total,
        "layer_parameters": found.parameters,
        "layers": [
            {
                "name": layer.name,
                "module": layer.module,
                "parameters": layer.parameters(),
                "heads": _units_as_json(layer.attention),
                "neurons": _units_as_json(layer.ffn),
            }
            for layer in found.layers
        ],
        "targets": _targets(found),
        "notes": list(found.notes),
        "probe": probed,
    }


def _units_as_json(units: "Units | None") -> dict[str, Any] | None:
    if units is None:
        return None
    return {
        "count": units.count,
        "size": units.size,
        "kv_groups": units.groups if units.kind == "heads" else None,
        "splits_groups": units.splits_groups if units.kind == "heads" else None,
        "all_may_go": units.removable,
        "fixed": units.fixed,
        "linears": list(units.linears),
    }
