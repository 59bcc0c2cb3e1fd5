"""What `keek-server` sets for its whole process."""

import subprocess
import sys

SETTLED = """
import gc
import faiss
import keek_server.app
from threadpoolctl import threadpool_info
from keek_server.serving import _settle

_settle()
libraries = [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]
assert libraries and set(libraries) == {1}, libraries
assert gc.get_freeze_count() > 50_000, gc.get_freeze_count()
assert len(gc.get_objects()) < 10_000, len(gc.get_objects())
"""


def test_a_server_computes_on_one_thread_and_collects_no_modules() -> None:
    done = subprocess.run([sys.executable, "-c", SETTLED], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
