"""The sessions of one model and the iterations that move them.

Does not know protos, transports, stores or other models.
"""
