"""What the server reports about itself: log, metrics, faults.

Does not know what other modules log or measure.
"""
