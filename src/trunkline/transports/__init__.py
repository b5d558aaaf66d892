"""Carriers of messages: how bytes of the network become messages of the core, and back."""
