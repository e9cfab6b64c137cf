"""Exceptions of the worker process.

MillraceError (millrace_schemas)
└── WorkerError
    ├── ConfigError        a flag or environment variable cannot be used
    ├── ModelError         the model directory is missing, incomplete or of a shape that we do not run
    └── EngineDied         the engine process ended or hung; `exit_code` where it has one
"""

from __future__ import annotations

from millrace_schemas import MillraceError


class WorkerError(MillraceError):
    """Root of what only a worker raises."""


class ConfigError(WorkerError):
    """The message names the flag or variable, its value, and what it must be."""


class ModelError(WorkerError):
    """The message names the file or tensor, what was found and what was expected."""


class EngineDied(WorkerError):
    def __init__(self, message: str, exit_code: int | None = None):
        super().__init__(message)
        self.exit_code = exit_code
