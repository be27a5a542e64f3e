"""The server's own certificates: what TLS files must hold, until when it holds, and when it is read again.

Knows no front, and no client's certificate: `identity` reads those.
"""
