"""The kinds of index by name. Nothing of FAISS is imported here, so that settings can name them."""

from typing import Literal

MainKind = Literal["exact", "ivf_flat", "ivf_fp16", "ivf_sq8", "ivf_pq", "hnsw"]
"""What an index of videos, or of users, can be as a file."""

ChosenKind = Literal[MainKind, "milvus"]
"""What can be asked for."""

IndexKind = Literal[ChosenKind, "exact_fp16"]
"""What a release may have: these, and what the clip vectors of a small corpus are kept in."""

GpuKind = Literal["copy", "cagra"]
"""What a GPU holds: the release's own index, or a graph that is built of its vectors."""
