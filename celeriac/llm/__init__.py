"""One way to ask a model, whoever sells it."""
