"""The methods of the Streamcell API: messages become work for an engine, and results become messages.

Does not know the other APIs.
"""
