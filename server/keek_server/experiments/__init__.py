"""Experiments: who gets feeds made with which parameters, and what that did."""
