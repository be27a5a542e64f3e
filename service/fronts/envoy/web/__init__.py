"""The envoy front's door for curl and browsers: Connect, gRPC-Web, CORS.

Does not know what the methods do.
"""
