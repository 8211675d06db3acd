"""HTTP/1.1 (RFC 9112) and HTTP/2 (RFC 9113), on both sides of the gateway."""
