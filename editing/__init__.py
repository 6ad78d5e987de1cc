"""Changes to a finished head."""
