"""Benchmarks of agents: suites, jobs, results and the leaderboard."""
