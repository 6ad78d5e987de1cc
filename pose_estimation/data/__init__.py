"""Small learned models of the pose estimator."""
