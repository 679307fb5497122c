"""Tuned options of agents: `<agent>.yaml` holds a section for each task, and `any` for all of them."""
