"""The fast front: an ASGI application inside Envoy. Carries bytes; does not know what the methods do."""
