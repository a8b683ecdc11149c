"""The parts of the stack that run as processes on this machine."""
