"""What can go wrong with a file.

MillraceError
├── StorageError       the place cannot be used right now, or never; `code` says which kind, `lasting` whether to go on
├── InputChanged       the input is not what it was when it was validated
├── BatchNotFound      no such batch, or its time to live is over
└── LeaseLost          somebody else works on the batch now
"""

from __future__ import annotations

from millrace_schemas import MillraceError


class StorageError(MillraceError):
    def __init__(self, message: str, *, code: str = "storage_failed", lasting: bool = False):
        super().__init__(message)
        self.code = code
        #: Whether trying again is of no use.
        self.lasting = lasting


class InputChanged(MillraceError):
    """The message names the file."""


class BatchNotFound(MillraceError, LookupError):
    """The id was never made here, or its time to live is over."""


class LeaseLost(MillraceError):
    """Nothing was written."""
