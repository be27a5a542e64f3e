"""Stores in SQLite and Redis: records by key, and the owner of each. Does not know sessions or models."""
