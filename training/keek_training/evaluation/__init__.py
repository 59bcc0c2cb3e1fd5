"""How good recommendations are: all videos ranked through what is served, beside tuned simple baselines.

What is counted, and how to read it: docs/evaluation.md.
"""
