"""Which class a conversation has, and what the class gives it: condition, reward and loss weight."""
