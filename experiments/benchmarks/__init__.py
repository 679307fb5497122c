"""`quantenv benchmark`: agents x tasks x budgets x seeds into one Parquet file, and the leaderboard made from it.

`suite` says what is run, `jobs` runs one search, `workers` runs many, `folder` keeps them, `results` reads them,
`leaderboard` ranks, and `replay` repeats what was recorded.
"""
