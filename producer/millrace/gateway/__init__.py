"""An HTTP front door to the queue, in OpenAI's shapes. It keeps nothing: any number may stand before one Redis."""

from .app import create_app
from .settings import GatewaySettings

__all__ = ["GatewaySettings", "create_app"]
