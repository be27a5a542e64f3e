"""The methods of the Streamcell API: protos in, work for an engine, protos out.

Does not know the other APIs.
"""
