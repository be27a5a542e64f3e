"""The standard gRPC services: health, reflection and channelz.

Does not know the Streamcell API, the Open Inference Protocol or sessions.
"""
