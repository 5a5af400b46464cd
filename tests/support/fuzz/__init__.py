"""Random damage to every file that a user can hand to `ochat`, and what the verbs that read it say."""
