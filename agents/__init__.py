"""Search agents: each is one file to be read from top to bottom; `agents.base` says what an agent is.

Importing this package imports no agent, so no torch: `make_agent` loads the one that was asked for.
"""

from agents.base import Agent, Log, agent_class, agent_names, describe, make_agent

__all__ = ["Agent", "Log", "agent_class", "agent_names", "describe", "make_agent"]
