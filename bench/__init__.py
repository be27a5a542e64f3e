"""Measures the server side by side with its floors: what gRPC and the cell cost by themselves."""
