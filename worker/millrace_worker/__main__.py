"""`python -m millrace_worker`: the same as `millrace worker`."""

from __future__ import annotations

from .cli import app

if __name__ == "__main__":
    app()
