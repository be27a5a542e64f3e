"""What the server shows of itself: log, metrics, faults.

Does not know what is logged or measured, nor why.
"""
