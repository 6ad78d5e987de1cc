"""The embedded prior's weights and its model card."""
