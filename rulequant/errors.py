"""The errors that reach a user, each with the exit code of the command that meets it."""

from __future__ import annotations

from typing import ClassVar

__all__ = ["CheckpointError", "MissingExtraError", "ModelError", "ResumableError", "RulequantError", "UsageError"]


class RulequantError(Exception):
    """A problem with what the user gave: what is wrong, and what to do about it.

    Anything else that escapes a command is a defect of rulequant (exit code 3).
    """

    exit_code: ClassVar[int] = 2

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  {self.remedy}" if self.remedy else self.message


class UsageError(RulequantError):
    """A command or function was called with arguments that do not fit together."""


class MissingExtraError(UsageError):
    """The command needs packages of an extra that is not installed."""


class ModelError(RulequantError):
    """A model cannot be read or built: no config, an unknown model_type, a callable that fails."""


class CheckpointError(RulequantError):
    """A checkpoint cannot be read, trusted or written."""


class ResumableError(CheckpointError):
    """A disk or a worker failed, or there is no space: the same run may succeed later, and what it finished is kept."""
