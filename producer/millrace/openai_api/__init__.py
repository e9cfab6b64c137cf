"""OpenAI's bodies, read and written: what the gateway and bulk files share. It knows no HTTP server."""
