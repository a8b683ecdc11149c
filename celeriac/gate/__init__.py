"""What the fleet knows of its lanes: which answer, and which are to be left alone for a while."""
