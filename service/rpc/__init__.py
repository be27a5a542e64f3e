"""Remote calls without a transport: methods, streams, how calls end.

Does not know engines, models or any server library.
"""
