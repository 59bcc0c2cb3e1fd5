"""What a new release must show before it may serve.

- `preflight.py`: looks at the files in a closed process, before anything is copied or loaded.
- `measure.py`: measures the release in Triton, against the golden vectors, the log and the live release.
- `verdict.py`: refuses, by the names of the gates.
- `report.py`: says all of it to people.
"""
