"""How does a net learn? The loop, the plan, views, optimizers and checkpoints."""
