"""Several server processes on one port, and the one that starts them, which serves nothing itself.

Nothing here imports gRPC, FAISS or NumPy: workers are started by a process that has loaded none of them.
"""
