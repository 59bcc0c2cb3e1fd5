"""Readers of public and own data sets, and synthetic data."""
