"""The second stage of feeds: a small model that puts the candidates of one page in order.

- `model.py`: the model; `fit.py` trains it by pages; `judge.py` says whether it orders better.
- `pages.py`: pages of the exposure log as it reads them, each user's history as it was.
- `learning.py`: from the log to a ranker in a run's folder; `command.py`: `keek-train ranker`.
"""
