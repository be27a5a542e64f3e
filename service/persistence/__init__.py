"""Sessions between memory and store: who comes and goes, what is written when.

Does not know protos or models' files.
"""
