"""Agents that are something else: a program, an MCP server, a model behind an API."""
