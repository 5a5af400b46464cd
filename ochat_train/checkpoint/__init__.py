"""Resume states: written by all ranks or by none, verified, and resumed from, also on other GPU counts."""
