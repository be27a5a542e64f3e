"""The artifact, its states and the cell call: torch is here alone.

Does not know sessions, queues or callers.
"""
