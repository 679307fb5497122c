"""Programs that users would pick instead of quantenv, run beside it: Sony's MCT and HAQ's way. See `bench_peers`.

Every run is a process of its own that does one job, `run.py`, and says what processor time each of its phases took.
"""
