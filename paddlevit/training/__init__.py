"""Training: the engine, what it minimises, how it steps, and what it remembers."""
