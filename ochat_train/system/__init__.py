"""What every package may use: durable writes, exit codes, messages, versions of libraries."""
