"""Measures the server beside its floors: what gRPC alone and the cell alone cost."""
