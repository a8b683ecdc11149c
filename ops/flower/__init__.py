"""Flower, shown our jobs."""
