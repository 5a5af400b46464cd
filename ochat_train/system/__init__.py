"""Leaves that everything may use: durable writes, exit codes, messages, library versions."""
