"""Programs that break things on purpose: the fault-injecting provider that tests and the bench use."""
