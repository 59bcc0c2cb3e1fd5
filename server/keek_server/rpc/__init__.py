"""The gRPC shell: decode, call, encode. What it serves is decided elsewhere."""
