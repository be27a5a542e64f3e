"""Loads a Streamcell server with steps: measures its rate, the latency of each message, and its CPU time."""
