"""The errors lightpeft raises on purpose. Each message says what was found and what to do."""


class LightPeftError(Exception):
    """Base of every error that lightpeft raises on purpose."""


class ConfigError(LightPeftError, ValueError):
    """Options that contradict each other, are out of range, or cannot be met by this run."""


class AnatomyError(LightPeftError, ValueError):
    """A model whose heads, neurons or PEFT modules cannot be found or cut."""


class EstimationError(LightPeftError, RuntimeError):
    """Statistics that cannot be used: not finite, or gathered over no step at all."""


class PlanError(LightPeftError, ValueError):
    """A plan that is impossible, malformed, or made for another model."""


class VerificationError(LightPeftError, RuntimeError):
    """The cut model does not compute what the gated model computed. Nothing was left cut."""


class CheckpointError(LightPeftError, RuntimeError):
    """A light checkpoint that is incomplete, damaged, unknown, or belongs to another base."""


class OutputError(CheckpointError):
    """A place that cannot be written to, or that holds what writing would destroy. Nothing was changed."""
