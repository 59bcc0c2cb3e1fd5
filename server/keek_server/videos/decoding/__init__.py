"""Takes hostile files apart: videos and images become frames in a process that may do nothing else.

- `decoder.py`: for the server. Hands each file to a child process of its own and reads the answer.
- `child.py`: the child. Imports, waits for one file, closes the sandbox behind itself, answers, ends.
- `types.py`, `wire.py`: what goes between them.

Nothing is imported here: the child imports this package, and must start quickly.
"""
