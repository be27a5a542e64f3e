"""Stores in SQLite and Redis: records by key, and who owns each. Does not know sessions or models."""
