"""Door: operators."""
