"""Learning curves: what more labels would be worth."""
