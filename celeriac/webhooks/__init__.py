"""What goes out to addresses that others named."""
