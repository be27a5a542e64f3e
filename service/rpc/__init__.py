"""Remote calls without a transport: methods, streams, and the status with which a call ends.

Does not know engines, models or any server library.
"""
