"""The fast front: an ASGI application inside Envoy. Does not know what the methods do."""
