"""The envoy front's protocols for curl and browsers: Connect, gRPC-Web, CORS.

Does not know what the methods do.
"""
