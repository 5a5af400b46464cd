"""Who answers suites: an export through an engine, or a chat server at a URL. `ochat eval` is run from here."""
