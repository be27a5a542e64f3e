"""Stores: where sessions outlive the process that serves them."""
