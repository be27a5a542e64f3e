"""Who a caller is: the principal that a client certificate or a bearer token stands for.

Does not know calls, transports or sessions.
"""
