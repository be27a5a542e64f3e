"""The artifact, its states and the cell call. Of the service's rooms this one alone works with torch.

Does not know sessions, queues or callers.
"""
