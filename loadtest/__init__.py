"""Loads a Streamcell server with steps: how many it takes, how long each takes, and what it costs."""
