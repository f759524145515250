"""The one error of this room that is not about options or files."""

from lightpeft.errors import LightPeftError


class AuditError(LightPeftError, RuntimeError):
    """A measurement that cannot be made or trusted: data, gradients or a model that do not allow it."""
