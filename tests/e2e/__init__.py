"""Proofs over real processes that sessions lose nothing."""
