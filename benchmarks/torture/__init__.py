"""Kills servers, Redis and PostgreSQL under load, and checks that nothing was lost or counted twice.

`python -m benchmarks.torture --cycles 30`. What was acknowledged must stand in the log once, and Redis
must hold exactly what a replay of the log gives. No release is needed.
"""
