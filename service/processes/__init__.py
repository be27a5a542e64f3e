"""A server as several processes: start, ready, reload, drain, stop.

Serves nothing itself and knows no torch.
"""
