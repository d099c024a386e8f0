"""Calibration: from raw scores to probabilities, and thresholds with intervals (`sie-server calibrate`)."""
