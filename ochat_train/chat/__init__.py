"""`ochat chat`: conversations in a terminal."""
