"""Owns how a series becomes an artifact: reading it, training a network on it, judging and exporting that.

Knows nothing of the service: the artifact (one TorchScript file with its manifest) is all that passes.
"""
