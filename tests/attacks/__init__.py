"""Clients that mean harm, and what a server shows under them: memory, threads, how late its answers come."""
