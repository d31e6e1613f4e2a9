"""What is learnt: losses, evaluation and metrics."""
