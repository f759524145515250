"""The errors of this room."""

from lightpeft.errors import ConfigError, LightPeftError


class TaskError(LightPeftError, ValueError):
    """A task, its data or its metrics cannot be used; says what was found and what to do."""


class TaskOptionError(TaskError, ConfigError):
    """The same where what was asked for is wrong, and not what is in the files."""
