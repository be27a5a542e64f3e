"""Sessions between memory and store: which ones come and go, and what is written when.

Does not know protos or models' files.
"""
