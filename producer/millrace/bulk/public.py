"""A batch as those may see it who do not run the place: nothing of where files are, and of what else is there."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from millrace_schemas.batch import BatchError

from .store import View

#: What errors say whose own words name places, by code.
_WORDS = {
    "not_found": "The input file is not there any more.",
    "permission_denied": "The batch's files may not be read or written where they are.",
    "storage_failed": "The place of the batch's files could not be used.",
    "unknown_place": "The place of the batch's files could not be used.",
    "input_changed": "The input file is not what it was when it was validated, or it is gone.",
}
_PROBLEM = "It waits for the place of its files, for a worker of its model or for the queue, and is tried again."


def public(view: View) -> View:
    batch = msgspec.structs.replace(view.batch, errors=tuple(map(_public, view.batch.errors)))
    return replace(view, batch=batch, problem=None if view.problem is None else _PROBLEM)


def _public(error: BatchError) -> BatchError:
    words = _WORDS.get(error.code)
    return error if words is None else msgspec.structs.replace(error, message=words)
