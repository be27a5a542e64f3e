"""Commands beside the server: they make what its settings point to. Each is a module with a `main`."""
