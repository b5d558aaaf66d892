"""Trunkline: the gateway that AI agents, tools and people share."""
