"""For tests of code that uses Millrace: real clients over queues in memory, without Redis, worker or model."""

from .answers import Answer, Answers, prompt_text
from .fake_job import FakeJob
from .fake_millrace import AnyJob, FakeMillrace

__all__ = ["Answer", "Answers", "AnyJob", "FakeJob", "FakeMillrace", "prompt_text"]
