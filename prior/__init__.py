"""How the embedded prior is made, and its weights."""
