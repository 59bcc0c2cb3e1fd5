"""The hourly job: from what is new in the log to a release, and feeds for when Triton is gone.

- `job.py`: the steps in order, and what a failure of each means.
- `state.py`: where it stands, on the disk.
- `steps.py`: what the steps do; `reading.py`, `feeds.py` and `bases.py` are its parts.
- `commands.py`: `keek-train hourly`, once or every hour.
"""
