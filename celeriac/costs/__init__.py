"""What a call cost, exactly."""
