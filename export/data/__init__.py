"""Files that the report carries along."""
