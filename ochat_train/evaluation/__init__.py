"""What a model has learnt: losses on held-out conversations, the condition matrix, answers to prompts and questions."""
