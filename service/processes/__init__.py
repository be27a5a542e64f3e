"""A server as several processes: start, ready, reload, drain, stop.

Does not serve calls itself and does not know torch.
"""
