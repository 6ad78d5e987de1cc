"""Training EG3D: losses, augmentation, schedules and the step."""
