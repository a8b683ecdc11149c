"""Conversations that outlive their jobs."""
