"""What the gateway takes and answers, as an OpenAPI document, and that document as a page."""
