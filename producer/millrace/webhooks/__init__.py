"""For whoever receives Millrace's webhooks: `verify` says whether one is real, and what it says."""

from .event import Event
from .signature import InvalidSignature, verify

__all__ = ["Event", "InvalidSignature", "verify"]
